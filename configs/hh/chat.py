"""HH-RLHF in the turns of an imported chat model: a reward model and DPO, each an adapter on the model as it is.

Commands: alignax import HuggingFaceTB/SmolLM2-135M-Instruct runs/smollm
          alignax run --config=configs/hh/chat.py:reward --workdir=runs/chat/reward
          alignax run --config=configs/hh/chat.py:dpo --workdir=runs/chat/dpo
From a file: --config.data.path=hh_harmless.jsonl.gz. Another model: --config.init_from=FOLDER
Dialogues become turns of the model's own chat template. What 135M parameters take on a CPU, and what they reach, stands
in experiments/LOG.md.
"""

from alignax.stages import offline, reward
from configs.hh.sft import hh_data

STAGES = {"reward": reward, "dpo": offline}


def get_config(stage="dpo"):
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r}: expected one of {', '.join(STAGES)}")
    c = STAGES[stage].get_config()
    c.init_from = "runs/smollm"
    c.template = "chat"
    hh_data(c)
    c.lora_args = dict(rank=16)
    c.packing = "shared"
    c.batch_size = 16
    c.total_steps = 82  # an epoch of the harmless test split's 1,314 pairs
    c.eval_every_steps = c.save_every_steps = 41
    if stage == "reward":
        c.optimizer_args = dict(learning_rate=3e-4, warmup_percent=10.0)
    else:
        c.loss, c.loss_args = "dpo", dict(beta=0.1)
        c.reference = "cached"
        c.optimizer_args = dict(learning_rate=5e-5, warmup_percent=10.0)
    return c
