"""Iterated RLHF on the harbour desk: three rounds of labels, a reward model refitted on all of them, and PPO.

Command: alignax run --config=configs/world/iterated_rlhf.py --workdir=runs/iterated
Fewer rounds: alignax run --config=configs/world/iterated_rlhf.py:2 --workdir=runs/two_rounds

Each round collects pairs of the policy that the one before made, fits a reward model to the pairs of all rounds so far,
and trains on from that policy against it; the KL is to the SFT policy in every round (Bai et al. 2022, 2204.05862,
section 4.5, refits on the union as well).
"""

from ml_collections import ConfigDict, FieldReference

from alignax.rounds import rounds
from alignax.stages import evaluate
from configs.world import collect, dpo, ppo, reward, sft


def get_config(n="3"):
    seed = FieldReference(0)
    c = ConfigDict(dict(seed=seed, sft=sft.get_config()))
    steps = dict(collect=collect.get_config(), reward=reward.get_config(), ppo=ppo.get_config())
    steps["collect"].init_from = steps["ppo"].init_from = "@last.ppo"
    steps["collect"].data.count = 3_000  # a round's
    steps["reward"].init_from = "@sft"
    steps["reward"].data = ConfigDict(dict(path="@all.collect", heldout_percent=10.0))
    steps["reward"].total_steps = 700
    steps["ppo"].reward_from, steps["ppo"].reference_from = "@reward", "@sft"
    steps["ppo"].total_steps = 32
    made = rounds(int(n), steps, first=dict(ppo="@sft"))
    c.update(made)
    c.evaluate = evaluate_config({name: f"@{name}" for name in made if name.startswith("ppo")}, f"@reward_{n}")
    c.steps = ("sft", *made, "evaluate")
    return seeded(c, seed)


def evaluate_config(policies, reward_from=""):
    """The policies of all rounds on the same prompts, beside the SFT policy that the first began with."""
    c = evaluate.get_config()
    c.init_from = "@sft"
    c.policies = dict(sft="@sft", **policies)
    c.probe = dpo.harbor_probe(c.probe, count=512, reward_from=reward_from)
    return c


def seeded(c, seed):
    """A pipeline with one seed to choose: it is added to each step's own, which counts the rounds."""
    for name in c.steps:
        own = seed + int(c[name].seed)
        c[name].seed = own
        if "count" in c[name].get("data", {}):  # of the world's texts
            c[name].data.seed = own
    return c
