"""The best of n replies by a reward model, as demonstrations; after a colon, another way to choose.

Command: alignax run --config=configs/world/select.py --config.init_from=runs/quickstart/sft --workdir=runs/world/select
Others: above (with --config.least), and best_and_worst, pairs for the offline losses
"""

from ml_collections import FieldReference

from alignax.stages import select


def get_config(keep="best"):
    c = select.get_config()
    init = FieldReference("runs/quickstart/sft")
    c.init_from = init
    c.reward_from = init + "/../reward"
    c.keep = keep
    c.source = "alignax.worlds.sources:prompts"
    c.data = dict(count=1_000, world_split="online")
    c.max_prompt_length = 24
    c.max_new_tokens = 32
    c.batch_size = 64
    c.samples_per_prompt = 8
    return c
