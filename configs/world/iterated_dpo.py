"""Iterated DPO on the harbour desk: rounds of the best and the worst of eight replies, and of DPO on these pairs.

Command: alignax run --config=configs/world/iterated_dpo.py --workdir=runs/iterated_dpo

Each round samples the policy of the one before, which is also its reference (Xu et al. 2023, "Some things are more
CRINGE than others", 2312.16682; Yuan et al. 2024, 2401.10020); with reference_from = "@sft" the KL is to the first.
"""

from ml_collections import ConfigDict, FieldReference

from alignax.rounds import rounds
from configs.world import collect, dpo, reward, select, sft
from configs.world.iterated_rlhf import evaluate_config, seeded


def get_config(n="2"):
    seed = FieldReference(0)
    c = ConfigDict(dict(seed=seed, sft=sft.get_config(), collect=collect.get_config(), reward=reward.get_config()))
    c.collect.init_from = c.reward.init_from = "@sft"
    c.reward.data.path = "@collect"
    steps = dict(select=select.get_config("best_and_worst"), dpo=dpo.get_config())
    steps["select"].init_from = steps["dpo"].init_from = steps["dpo"].reference_from = "@last.dpo"
    steps["select"].reward_from = "@reward"
    steps["dpo"].data.path = "@select"
    steps["dpo"].total_steps = 60
    made = rounds(int(n), steps, first=dict(dpo="@sft"))
    c.update(made)
    c.evaluate = evaluate_config({name: f"@{name}" for name in made if name.startswith("dpo")}, "@reward")
    c.steps = ("sft", "collect", "reward", *made, "evaluate")
    return seeded(c, seed)
