"""Configs as people have them, old spellings and odd places included: what transformers computes of them is what we do.

Rotary positions are compared by their frequencies, which costs no model; the rest by logits.
"""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS / "models"))

import hf_cases  # noqa: E402
import hf_runs  # noqa: E402
import numpy as np  # noqa: E402
import torch_families  # noqa: E402
from transformers import AutoConfig  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: E402
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding  # noqa: E402

from alignax.models.hf import config as hf_config  # noqa: E402
from alignax.models.rotary import frequencies  # noqa: E402

_YARN = dict(type="yarn", factor=4.0)
_LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
_LONG = dict(short_factor=[1.0, 1.5, 2.0, 2.5], long_factor=[1.0, 3.0, 9.0, 27.0])
_PAIRS = dict(hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, vocab_size=50)
_PAIRS |= dict(num_hidden_layers=1, max_position_embeddings=64, rope_theta=500.0, pad_token_id=0)
ROPES = {
    "old name, beside the group": dict(rope_scaling=_YARN, original_max_position_embeddings=24),
    "in the group": dict(rope_scaling=_YARN | dict(original_max_position_embeddings=24)),
    "nowhere": dict(rope_scaling=_YARN),
    "no factor": dict(rope_scaling=_YARN | dict(factor=None, original_max_position_embeddings=24)),
    "whole numbers": dict(rope_scaling=_YARN | dict(factor=4, beta_fast=16, beta_slow=2, attention_factor=2)),
    "beta of zero": dict(rope_scaling=_YARN | dict(beta_fast=0, mscale=0.7, mscale_all_dim=0)),
    "truncate of null": dict(rope_scaling=_YARN | dict(truncate=None, original_max_position_embeddings=24)),
    "llama3, beside": dict(rope_scaling=_LLAMA3, original_max_position_embeddings=24),
    "llama3, nowhere": dict(rope_scaling=_LLAMA3),
    "longrope, beside": dict(rope_scaling=_LONG | dict(type="longrope"), original_max_position_embeddings=24),
    "longrope, nowhere": dict(rope_scaling=_LONG | dict(type="longrope")),
    "longrope, its own factor": dict(rope_scaling=_LONG | dict(type="longrope", factor=3)),
    "old name beside the new one": dict(rope_scaling=dict(type="linear", factor=2), rope_parameters=dict(factor=2.0)),
    "a factor that the default lacks": dict(rope_scaling=dict(type="default", factor=2.0)),
    "a share that a Llama does not read": dict(partial_rotary_factor=0.5),
    "nothing": dict(rope_scaling={}),
    "phi3, su": dict(rope_scaling=_LONG | dict(type="su", original_max_position_embeddings=24))
    | dict(model_type="phi3", original_max_position_embeddings=24),
    "phi3, a share beside": dict(model_type="phi3", partial_rotary_factor=0.5),
    "phi3, its default": dict(model_type="phi3", rope_scaling=_LONG | dict(type="longrope")),
}


@pytest.mark.parametrize("name", ROPES)
def test_rotary_positions_are_read_from_where_transformers_takes_them(name, tmp_path):
    said = {"model_type": "llama"} | _PAIRS | ROPES[name]
    (tmp_path / "config.json").write_text(json.dumps(said))
    ours = hf_config.from_hf(*hf_config.read_config(tmp_path))
    rotary = {"llama": LlamaRotaryEmbedding, "phi3": Phi3RotaryEmbedding}[said["model_type"]]
    theirs = rotary(AutoConfig.from_pretrained(tmp_path))
    np.testing.assert_allclose(frequencies(ours), theirs.inv_freq.numpy(), rtol=1e-6)
    assert ours.rope_magnitude == pytest.approx(theirs.attention_scaling, rel=1e-12)


@pytest.mark.parametrize(
    "name, change",
    [
        ("gemma3", {"attn_logit_softcapping": 2.0}),  # which its attention does not apply
        ("qwen2", {"head_dim": 8}),  # not 24 / 4
        ("phi3", {"head_dim": 16, "attention_bias": True, "unk_token_id": 0}),
    ],
)
def test_logits_are_those_of_transformers_whatever_else_is_said(name, change, tmp_path):
    torch_families.save(torch_families.build(name, **change), tmp_path)
    want, (_, valid) = torch_families.run(tmp_path)["logits"], hf_cases.inputs()
    np.testing.assert_allclose(hf_runs.forward(*hf_runs.load(tmp_path))[valid], want[valid], atol=1e-5)
