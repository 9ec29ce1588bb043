"""Parity with transformers' Llama from a file, where PyTorch is not installed (see tests/goldens/make_llama.py)."""

from pathlib import Path

import numpy as np
import pytest
from llama_parity import compare

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "llama.npz")


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_decoder_gives_the_recorded_logits_of_transformers_llama(name):
    part = {key.removeprefix(f"{name}/"): GOLDEN[key] for key in GOLDEN if key.startswith(f"{name}/")}
    params = {key.removeprefix("params/"): leaf for key, leaf in part.items() if key.startswith("params/")}
    compare(params, part["tokens"], part["valid"], part["logits"])
