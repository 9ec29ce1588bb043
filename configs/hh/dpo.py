"""DPO on human preferences (Anthropic HH-RLHF), from the SFT checkpoint.

Command: alignax run --config=configs/hh/dpo.py --config.init_from=runs/hh/sft --workdir=runs/hh/dpo
From a file: --config.data.path=hh_harmless.jsonl.gz
CPU: about 2.5 minutes on 2 busy cores for the 60 steps here, held-out accuracy 0.573; about 7 minutes with packing =
"off", which ends at the same.
"""

from alignax.stages import offline
from configs.hh.sft import hh_data


def get_config():
    c = offline.get_config()
    c.init_from = "runs/hh/sft"
    c.template = "plain"
    hh_data(c)
    c.loss = "dpo"
    c.loss_args = dict(beta=0.1)
    c.packing = "shared"
    c.batch_size = 16
    c.total_steps = 60
    c.optimizer_args = dict(learning_rate=1e-4, warmup_percent=10.0)
    c.eval_every_steps = 30
    c.save_every_steps = 30
    return c
