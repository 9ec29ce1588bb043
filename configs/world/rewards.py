"""PPO of the world against more than one reward model: ensembles, an average, a constraint, shaping by the reference.

Command: alignax run --config=configs/world/rewards.py:par --config.init_from=runs/quickstart/sft --workdir=runs/par
Recipes: RECIPES below. The reward models are three runs of configs/world/reward.py with --config.seed=0, 1 and 2 (and
--config.head_seed=0, for their average), and one with --config.heads=3.
"""

from ml_collections import ConfigDict

from configs.world import ppo

MEMBERS = ("runs/warm/0", "runs/warm/1", "runs/warm/2")
JUDGE = {"from": "runs/quickstart/reward"}
RAW = dict(normalize=False, clip=0.0)  # numbers that mean something as they are
RECIPES = {
    "ensemble": dict(rewards=dict(judge={"from": MEMBERS, "function": "alignax.rewards.combine:mean_less_std"})),
    "heads": dict(rewards=dict(judge={"from": "runs/heads", "function": "alignax.rewards.combine:mean_less_std"})),
    "warm": dict(rewards=dict(judge={"from": "runs/warm/average"})),  # of configs/world/average.py
    # in the mean at most one word more than 16
    "constraint": dict(
        rewards=dict(judge=JUDGE, brief=dict(function="alignax.rewards.style:length", most=16, fall=1, at_least=-1.0))
    ),
    "par": dict(rewards=dict(judge=JUDGE), reward_shaping="preference", scoring_args=RAW),
    "centred": dict(rewards=dict(judge=JUDGE), reward_shaping="centred"),
}


def get_config(recipe="ensemble"):
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r}: expected one of {', '.join(RECIPES)}")
    c = ppo.get_config()
    c.reward_from, c.critic_init = "", "policy"
    for name, value in RECIPES[recipe].items():
        c[name] = ConfigDict(value) if isinstance(value, dict) else value
    return c
