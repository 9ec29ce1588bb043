"""SFT on the chosen replies of human preferences (Anthropic HH-RLHF), GPT-2 tokenizer, from random parameters.

Command: alignax run --config=configs/hh/sft.py --workdir=runs/hh/sft
From files: --config.data.path=hh_harmless.jsonl.gz --config.tokenizer=FOLDER
Small enough to see the stages work on real text, far too small to write any: 7M parameters, 6.4M of them the embedding
of 50,257 tokens. CPU: about 6 minutes on 2 busy cores for the 300 steps here, held-out loss 5.08 at the end; about 12
minutes with packing = "off", which ends at the same.
"""

from alignax.stages import sft


def get_config():
    c = sft.get_config()
    c.model = "llama"
    c.model_args = dict(dim=128, layers=4, heads=4, kv_heads=2, head_dim=32, ffn=384)
    c.tokenizer = "gpt2"
    c.template = "plain"
    hh_data(c)
    c.packing = "packed"
    c.batch_size = 16
    c.total_steps = 300
    c.optimizer_args = dict(learning_rate=1e-3, warmup_percent=5.0)
    c.eval_every_steps = 50
    c.save_every_steps = 50
    return c


def hh_data(c):
    """Dialogues split at the last turn; a tenth of the openings is held out."""
    c.source = "hh"
    c.data = dict(path="Anthropic/hh-rlhf", heldout_percent=10.0, subset="harmless-base")
    c.max_length = 256
