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
from transformers.models.glm4.modeling_glm4 import Glm4RotaryEmbedding  # noqa: E402
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding  # noqa: E402
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: E402
from transformers.models.ministral3.modeling_ministral3 import Ministral3RotaryEmbedding  # noqa: E402
from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding  # noqa: E402
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding  # noqa: E402

from alignax.models.hf import config as hf_config  # noqa: E402
from alignax.models.rotary import frequencies  # noqa: E402

_YARN = dict(type="yarn", factor=4.0)
_LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
_LONG = dict(short_factor=[1.0, 1.5, 2.0, 2.5], long_factor=[1.0, 3.0, 9.0, 27.0])
_PAIRS = dict(hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, vocab_size=50)
_PAIRS |= dict(num_hidden_layers=1, max_position_embeddings=64, rope_theta=500.0, pad_token_id=0)
_OLMO_3 = dict(model_type="olmo3", num_hidden_layers=4, head_dim=16)
_GROUPS = dict(
    full_attention=_YARN | dict(rope_theta=500.0, beta_fast=8), sliding_attention=dict(rope_theta=9.0), truncate=False
)
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
    "gpt-neox, old names": dict(model_type="gpt_neox", rotary_emb_base=700, rotary_pct=0.5, rope_theta=700),
    "gpt-neox, its share": dict(model_type="gpt_neox", rope_theta=1e4, rope_scaling=dict(type="linear", factor=2)),
    "glm-4, its share": dict(model_type="glm4", head_dim=16),
    "glm-4, a share beside": dict(model_type="glm4", head_dim=8, partial_rotary_factor=1.0, rope_scaling=_YARN),
    "gpt-oss, nothing": dict(model_type="gpt_oss", head_dim=16, rope_theta=150000),
    "gpt-oss, old name": dict(model_type="gpt_oss", head_dim=16, rope_scaling=_YARN | dict(truncate=False)),
    "ministral 3, nothing": dict(model_type="ministral3", head_dim=16, rope_theta=1e6),
    "ministral 3, not stretched": dict(model_type="ministral3", head_dim=8)
    | dict(rope_parameters=dict(original_max_position_embeddings=24, llama_4_scaling_beta=0.2)),
    "olmo 3, beside": _OLMO_3 | dict(rope_scaling=dict(rope_type="yarn", factor=4.0)),
    "olmo 3, two groups": _OLMO_3 | dict(rope_parameters=_GROUPS, rope_theta=500.0),
}
ROTARY = {
    "llama": LlamaRotaryEmbedding, "phi3": Phi3RotaryEmbedding, "gpt_neox": GPTNeoXRotaryEmbedding,
    "glm4": Glm4RotaryEmbedding, "gpt_oss": GptOssRotaryEmbedding, "ministral3": Ministral3RotaryEmbedding,
    "olmo3": Olmo3RotaryEmbedding,
}  # fmt: skip


KINDS = {"olmo3": {"full": "full_attention_", "sliding": "sliding_attention_"}}


@pytest.mark.parametrize("name", ROPES)
def test_rotary_positions_are_read_from_where_transformers_takes_them(name, tmp_path):
    said = {"model_type": "llama"} | _PAIRS | ROPES[name]
    (tmp_path / "config.json").write_text(json.dumps(said))
    ours = hf_config.from_hf(*hf_config.read_config(tmp_path))
    theirs = ROTARY[said["model_type"]](AutoConfig.from_pretrained(tmp_path))
    for kind, prefix in KINDS.get(said["model_type"], {"full": ""}).items():
        want = getattr(theirs, f"{prefix}inv_freq").numpy()
        np.testing.assert_allclose(frequencies(ours, kind), want, rtol=1e-6, err_msg=kind)
        magnitude = ours.rope_magnitude if kind == "full" else 1.0
        assert magnitude == pytest.approx(getattr(theirs, f"{prefix}attention_scaling"), rel=1e-12)


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
