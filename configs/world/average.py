"""The average of three reward models of the world: WARM, Rame et al. 2024.

Command: alignax run --config=configs/world/average.py --config.members="('runs/warm/0','runs/warm/1','runs/warm/2')"
--workdir=runs/warm/average

Each member is a run of configs/world/reward.py with a seed of its own and the head's initialisation in common:
--config.seed=1 --config.head_seed=0 --workdir=runs/warm/1
"""

from alignax.stages import average


def get_config():
    c = average.get_config()
    c.members = ("runs/warm/0", "runs/warm/1", "runs/warm/2")
    return c
