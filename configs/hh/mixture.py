"""SFT on a mixture: seven rows of HH-RLHF's chosen replies for each three worked sums of GSM8K.

Command: alignax run --config=configs/hh/mixture.py --workdir=runs/hh/mixture
From files, which have no test split: --config.data.parts.hh.path=hh_harmless.jsonl.gz --config.tokenizer=FOLDER
--config.data.parts.gsm8k.path=gsm8k.jsonl.gz --config.data.parts.gsm8k.heldout_percent=5.0
The model is that of configs/hh/sft.py, as small: this shows how parts are named and weighted, and held out each.
"""

from configs.hh import sft


def get_config():
    c = sft.get_config()
    c.source = "mixture"
    c.data = dict(
        parts=dict(
            hh=dict(source="hh", weight=0.7, path="Anthropic/hh-rlhf", heldout_percent=10.0, subset="harmless-base"),
            gsm8k=dict(source="gsm8k", weight=0.3, path="openai/gsm8k"),  # it has a test split of its own
        ),
        max_repeats=10.0,  # times that a run may read the rows of one part
    )
    return c
