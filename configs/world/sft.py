"""SFT on the harbour desk, from random parameters.

Command: alignax run --config=configs/world/sft.py --workdir=runs/world/sft
"""

from alignax.stages import sft


def get_config():
    c = sft.get_config()
    c.model = "harbor"
    c.tokenizer = "alignax.worlds.tokenizer:build_tokenizer"
    c.source = "alignax.worlds.sources:demonstrations"
    c.data = dict(count=20_000, heldout=256)
    c.max_length = 48
    c.batch_size = 32
    c.compute.remat = "dots"  # a small model on a CPU: to compute again is cheaper than to keep
    c.total_steps = 1000
    c.optimizer = "muon"
    c.optimizer_args = dict(learning_rate=0.01, adam_learning_rate=5e-3, warmup_percent=5.0)
    c.eval_every_steps = 250
    c.save_every_steps = 250
    return c
