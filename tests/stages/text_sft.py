"""Config of the tests: SFT on a file of rows, `--config=text_sft.py:FILE`. The model is as small as it gets."""

from ml_collections import ConfigDict

from alignax.stages import sft


def get_config(path=""):
    c = sft.get_config()
    c.model = "harbor"
    c.model_args = ConfigDict(dict(dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=32))
    c.tokenizer = "alignax.worlds.tokenizer:build_tokenizer"
    c.template = "plain"
    c.data = ConfigDict(dict(path=path, heldout_percent=25.0))
    c.max_length = 24
    c.batch_size = 8
    c.total_steps = 4
    c.eval_every_steps = 0
    c.save_every_steps = 1
    return c
