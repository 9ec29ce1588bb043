"""A Bradley-Terry reward model on human preferences (Anthropic HH-RLHF), from the SFT checkpoint's trunk.

Command: alignax run --config=configs/hh/reward.py --config.init_from=runs/hh/sft --workdir=runs/hh/reward
From a file: --config.data.path=hh_harmless.jsonl.gz
CPU: about 1.5 minutes on 2 busy cores for the 150 steps here, held-out accuracy 0.580; about 4 minutes with packing =
"off", which ends at the same.
"""

from alignax.stages import reward
from configs.hh.sft import hh_data


def get_config():
    c = reward.get_config()
    c.init_from = "runs/hh/sft"
    c.template = "plain"
    hh_data(c)
    c.packing = "shared"
    c.batch_size = 16
    c.total_steps = 150
    c.optimizer_args = dict(learning_rate=3e-4, warmup_percent=5.0)
    c.eval_every_steps = 50
    c.save_every_steps = 50
    return c
