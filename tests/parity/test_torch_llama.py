"""Logits of transformers' Llama, computed now from our parameters."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import torch_llama  # noqa: E402
from llama_parity import compare  # noqa: E402


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_llama_agrees_with_the_decoder(tied):
    tokens, valid, params = torch_llama.inputs(tied)
    compare(params, tokens, valid, torch_llama.logits(params, tokens, valid))
