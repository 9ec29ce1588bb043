"""Online alignment without a critic: a recipe is an advantage and a loss, named after the colon.

Command: alignax run --config=configs/world/online.py:grpo --config.init_from=runs/quickstart/sft --workdir=runs/grpo
Recipes: reinforce, reinforce_plus_plus, reinforce_plus_plus_baseline, rloo, grpo, dr_grpo, dapo, gspo, gspo_token,
cispo, sapo, luspo, gmpo, vespo, clip_cov, kl_cov, ppo_dual_clip, gdpo, raft, remax, vbon, nash_md, xpo, online_dpo
"""

from ml_collections import ConfigDict

from alignax.stages import online
from configs.world import ppo

ONCE = dict(epochs=1, minibatches=1)  # for losses that do not correct for a policy that has moved on
STANDARDISED = dict(advantage="group_baseline", advantage_args=dict(baseline="standardise"))
UNWEIGHTED = dict(importance_weighted=False)  # as the paper has it; TRL weighs
AGAINST = dict(samples_per_prompt=2, batch_size=64, update_args=ONCE)  # a reply of the policy, and an opponent's
SINGLE = dict(advantage="reinforce_plus_plus", samples_per_prompt=1, batch_size=64)
RECIPES = {  # what each says besides the shared settings below
    "reinforce": SINGLE | dict(loss="reinforce", update_args=ONCE),
    "reinforce_plus_plus": SINGLE | dict(loss="ppo_clip"),
    "reinforce_plus_plus_baseline": dict(
        loss="ppo_clip",
        advantage="group_baseline",
        advantage_args=dict(baseline="mean", whiten_advantages=True),
        kl_placement="loss",
        kl_estimator="k2",
    ),
    "rloo": dict(
        loss="reinforce",
        loss_args=dict(aggregation="sequence_sum"),
        advantage="group_baseline",
        advantage_args=dict(baseline="leave_one_out"),
        update_args=ONCE,
    ),
    "grpo": STANDARDISED | dict(loss="grpo", kl_placement="loss", kl_estimator="k3", kl_loss_args=UNWEIGHTED),
    "dr_grpo": dict(
        loss="dr_grpo",
        loss_args=dict(max_tokens=32.0),
        advantage="group_baseline",
        advantage_args=dict(baseline="mean"),
        kl_coef=0.0,
    ),
    # with a reward of few values, right or wrong, say oversample=2 as well: a reward model's scores always differ
    "dapo": dict(
        loss="dapo",
        advantage="group_baseline",
        advantage_args=dict(baseline="standardise", only_informative=True),
        kl_coef=0.0,
    ),
    "gspo": STANDARDISED | dict(loss="gspo", kl_coef=0.0),
    "gspo_token": STANDARDISED | dict(loss="gspo_token", kl_coef=0.0),
    "cispo": STANDARDISED | dict(loss="cispo", kl_coef=0.0),
    "sapo": STANDARDISED | dict(loss="sapo", kl_coef=0.0),
    # clips of the paper's section 5.1, wider than the loss's, which are GSPO's
    "luspo": STANDARDISED | dict(loss="luspo", loss_args=dict(clip_low=2e-3, clip_high=2.5e-3), kl_coef=0.0),
    "gmpo": STANDARDISED | dict(loss="gmpo", kl_coef=0.0),  # the clips of the paper's section 4 are the loss's
    "vespo": STANDARDISED | dict(loss="vespo", kl_coef=0.0),  # the shapes of the authors' code are the loss's
    "clip_cov": STANDARDISED | dict(loss="clip_cov", kl_coef=0.0),
    "kl_cov": STANDARDISED | dict(loss="kl_cov", kl_coef=0.0),
    "ppo_dual_clip": STANDARDISED | dict(loss="ppo_dual_clip"),
    # several rewards: a missing end, which the others are charged for in the score, is one of its own
    "gdpo": dict(
        loss="grpo",
        advantage="gdpo",
        kl_coef=0.0,
        scoring_args=dict(normalize=False, clip=0.0, missing_eos_penalty=0.0),
        rewards=dict(judge={"from": "", "weight": 1.0}, ended=dict(function="alignax.rewards.style:ended", weight=1.0)),
    ),
    "raft": dict(loss="reinforce", advantage="winners", update_args=ONCE, kl_coef=0.0),
    "remax": AGAINST
    | dict(loss="reinforce", loss_args=dict(aggregation="sequence_sum"), opponent="greedy", advantage="remax"),
    # one reply of the policy against seven of the reference; with a KL coefficient of 1 the target is best-of-4
    "vbon": dict(
        loss="ppo_clip",
        opponent="reference",
        advantage="vbon",
        advantage_args=dict(n=4),
        samples_per_prompt=8,
        batch_size=32,
        kl_coef=1.0,
    ),
    "nash_md": AGAINST
    | dict(
        loss="nash_md",
        opponent="mixture",
        advantage="win_probability",
        scoring_args=dict(normalize=False, clip=0.0),
        kl_coef=0.0,
    ),
    "xpo": AGAINST | dict(batch_size=32, loss="xpo", opponent="reference", advantage="best_and_worst", kl_coef=0.0),
    "online_dpo": dict(loss="dpo", advantage="best_and_worst", samples_per_prompt=2, batch_size=32, kl_coef=0.0),
}


def get_config(recipe="grpo"):
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r}: expected one of {', '.join(RECIPES)}")
    c = ppo.get_config()
    c.critic_init, c.value_optimizer_args = "none", online.get_config().value_optimizer_args
    c.samples_per_prompt, c.batch_size = 4, 16  # 64 replies per iteration, as many as PPO's
    c.kl_controller, c.kl_controller_args = "fixed_kl", ConfigDict()  # each recipe's KL coefficient is its own
    for name, value in RECIPES[recipe].items():
        c[name] = ConfigDict(value) if isinstance(value, dict) else value
    if c.rewards:
        c.rewards.judge["from"], c.reward_from = c.get_ref("init_from") + "/../reward", ""
    return c
