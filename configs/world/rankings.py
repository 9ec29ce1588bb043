"""A reward model on rankings of four samples: Plackett-Luce; `ranked_pairs` is the loss of InstructGPT.

Command: alignax run --config=configs/world/rankings.py --config.init_from=RUN/sft --workdir=RUN/reward_rankings
What it reads comes from configs/world/collect.py:rankings, in RUN/rankings.
"""

from configs.world import reward


def get_config():
    c = reward.get_config()
    c.loss = "plackett_luce"
    c.data.path = c.get_ref("init_from") + "/../rankings"
    return c
