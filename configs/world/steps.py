"""A process reward model on the steps of worked sums, three in ten of which are wrong.

Command: alignax run --config=configs/world/steps.py --config.init_from=RUN/sft --workdir=RUN/reward_steps
"""

from configs.world import reward


def get_config():
    c = reward.get_config()
    c.loss = "process"
    c.source, c.data = "alignax.worlds.sources:worked_sums", dict(count=7_000, error_rate=0.3)
    return c
