"""SmolLM2-135M-Instruct without its weights: its own config files and chat template, and a tokenizer of bytes.

Its tokenizer.json, of 3.5 MB, is left out; the special tokens of this one have the ids that they have there.
"""

import json
import shutil
from pathlib import Path

import hf_cases
import hf_runs
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

FILES = Path(__file__).with_name("smollm2")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SIZES = dict(
    hidden_size=24, head_dim=6, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=320,
)  # fmt: skip


def config() -> dict:
    """The config.json that is published."""
    return json.loads((FILES / "config.json").read_text(encoding="utf-8"))


def write(folder: Path) -> Path:
    """A checkpoint folder with its config files, smaller sizes and weights by the rule of hf_cases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hf_cases.CASES, "smollm2", config() | SIZES)
        hf_runs.write("smollm2", folder)
    for file in FILES.iterdir():
        if file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    _tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def _tokenizer() -> Tokenizer:
    """A token for each byte, after the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    out = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    out.pre_tokenizer, out.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    out.add_special_tokens(list(SPECIAL))
    return out
