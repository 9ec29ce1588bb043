"""Rejection sampling on the harbour desk: rounds of the best of eight replies and of SFT on them (RAFT).

Command: alignax run --config=configs/world/rejection.py --workdir=runs/rejection

With keep = "above" and a `least` that rises from round to round it is ReST (Gulcehre et al. 2023, 2308.08998); RAFT is
Dong et al. 2023, 2304.06767.
"""

from ml_collections import ConfigDict, FieldReference

from alignax.rounds import rounds
from configs.world import collect, reward, select, sft
from configs.world.iterated_rlhf import evaluate_config, seeded


def get_config(n="2"):
    seed = FieldReference(0)
    c = ConfigDict(dict(seed=seed, sft=sft.get_config(), collect=collect.get_config(), reward=reward.get_config()))
    c.collect.init_from = c.reward.init_from = "@sft"
    c.reward.data.path = "@collect"
    steps = dict(select=select.get_config("best"), tune=tune_config())
    steps["select"].init_from = steps["tune"].init_from = "@last.tune"
    steps["select"].reward_from = "@reward"
    made = rounds(int(n), steps, first=dict(tune="@sft"))
    c.update(made)
    c.evaluate = evaluate_config({name: f"@{name}" for name in made if name.startswith("tune")}, "@reward")
    c.steps = ("sft", "collect", "reward", *made, "evaluate")
    return seeded(c, seed)


def tune_config():
    """SFT on what was selected."""
    c = sft.get_config()
    c.model, c.tokenizer = "", ""  # the policy's own
    c.source = "jsonl"
    c.data = ConfigDict(dict(path="@select", heldout_percent=10.0))
    c.total_steps = 120
    c.optimizer, c.optimizer_args = "adamw", ConfigDict(dict(learning_rate=3e-4, warmup_percent=10.0))
    c.eval_every_steps = c.save_every_steps = 60
    return c
