"""Configs with the keys that published checkpoints of each family have, and old spellings of them; sizes are small.

Keys and values are those of the config.json files on the hub, written down from what is publicly known of them.
"""

import json

import pytest

from alignax.models.hf import config as hf_config
from alignax.models.hf.families import FAMILIES

_OWN = dict(
    initializer_range=0.02, torch_dtype="bfloat16", transformers_version="4.41.2", use_cache=True, vocab_size=96,
    bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_SIZES = dict(
    hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=4, num_key_value_heads=2,
    max_position_embeddings=4096, rms_norm_eps=1e-5, hidden_act="silu", attention_dropout=0.0,
)  # fmt: skip
_LLAMA = _OWN | _SIZES | dict(model_type="llama", architectures=["LlamaForCausalLM"], pretraining_tp=1)
_QWEN = dict(max_window_layers=2, use_sliding_window=False, rope_theta=1e6)
_GEMMA = dict(attention_bias=False, head_dim=16, pad_token_id=0, cache_implementation="hybrid")
_GEMMA |= dict(hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=16)
_CAPS = dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0, sliding_window=1024, rope_theta=1e4)
_LONG = dict(short_factor=[1.0] * 6, long_factor=[2.0] * 6)
_CODE = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}

PUBLISHED = {
    "gpt2": dict(
        model_type="gpt2", architectures=["GPT2LMHeadModel"], activation_function="gelu_new", attn_pdrop=0.1,
        embd_pdrop=0.1, resid_pdrop=0.1, layer_norm_epsilon=1e-5, n_ctx=64, n_embd=32, n_head=4, n_layer=2,
        n_positions=64, summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True,
        summary_type="cls_index", summary_use_proj=True, vocab_size=96, bos_token_id=95, eos_token_id=95,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
    ),
    "llama-2": _LLAMA | dict(rope_scaling=None, tie_word_embeddings=False),
    "llama-3.1": _LLAMA | dict(
        attention_bias=False, mlp_bias=False, rope_theta=5e5, eos_token_id=[2, 3], rope_scaling=dict(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192,
            rope_type="llama3",
        ),
    ),
    "llama, linear by its old name": _LLAMA | dict(rope_scaling={"type": "linear", "factor": 2.0}),
    "llama, dynamic by its old name": _LLAMA | dict(rope_scaling={"type": "dynamic", "factor": 2.0}),
    "llama, after other trainers": _LLAMA | dict(
        unsloth_fixed=True, unsloth_version="2025.1", _attn_implementation_autoset=True, max_sequence_length=2048
    ),
    "smollm2": _LLAMA | {
        "is_llama_config": True, "rope_interleaved": False, "attention_bias": False, "tie_word_embeddings": True,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    "mistral": _OWN | _SIZES | dict(model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=4096),
    "qwen2.5": _OWN | _SIZES | _QWEN | dict(
        model_type="qwen2", architectures=["Qwen2ForCausalLM"], sliding_window=32768, use_mrope=False
    ),
    "qwen2.5 with yarn": _OWN | _SIZES | _QWEN | dict(
        model_type="qwen2", architectures=["Qwen2ForCausalLM"], sliding_window=32768,
        rope_scaling=dict(factor=4.0, original_max_position_embeddings=1024, type="yarn"),
    ),
    "qwen3": _OWN | _SIZES | _QWEN | dict(
        model_type="qwen3", architectures=["Qwen3ForCausalLM"], head_dim=32, attention_bias=False, sliding_window=None,
        rope_scaling=None,
    ),
    "qwen3-moe": _OWN | _SIZES | _QWEN | dict(
        model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], head_dim=32, attention_bias=False,
        sliding_window=None, rope_scaling=None, decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=64,
        norm_topk_prob=True, num_experts=8, num_experts_per_tok=2, output_router_logits=False,
        router_aux_loss_coef=0.001,
    ),
    "gemma": _OWN | _SIZES | dict(
        model_type="gemma", architectures=["GemmaForCausalLM"], attention_bias=False, head_dim=16, pad_token_id=0,
        hidden_act="gelu", hidden_activation=None, rope_theta=1e4, rope_scaling=None,
    ),
    "gemma-2": _OWN | _SIZES | _GEMMA | _CAPS | dict(
        model_type="gemma2", architectures=["Gemma2ForCausalLM"], hidden_act="gelu_pytorch_tanh"
    ),
    "gemma-3": {k: v for k, v in (_OWN | _SIZES | _GEMMA).items() if k != "hidden_act"} | dict(
        model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], attn_logit_softcapping=None,
        final_logit_softcapping=None, rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000,
        sliding_window=512, sliding_window_pattern=6, eos_token_id=[1, 106],
    ),
    "phi-3": _OWN | _SIZES | dict(
        model_type="phi3", architectures=["Phi3ForCausalLM"], attention_bias=False, auto_map=_CODE, embd_pdrop=0.0,
        resid_pdrop=0.0, original_max_position_embeddings=4096, rope_theta=1e4, rope_scaling=None, sliding_window=2047,
        pad_token_id=0,
    ),
    "phi-4-mini": _OWN | _SIZES | dict(
        model_type="phi3", architectures=["Phi3ForCausalLM"], attention_bias=False, auto_map=_CODE, embd_pdrop=0.0,
        resid_pdrop=0.0, original_max_position_embeddings=1024, partial_rotary_factor=0.75, full_attn_mod=1,
        interpolate_factor=1, lm_head_bias=False, mlp_bias=False, pad_token_id=0, sliding_window=262144,
        rope_scaling={"type": "longrope"} | _LONG,
    ),
    "olmo-2": _OWN | _SIZES | dict(
        model_type="olmo2", architectures=["Olmo2ForCausalLM"], attention_bias=False, rope_scaling=None, pad_token_id=0
    ),
    "smollm3": _OWN | _SIZES | _QWEN | dict(
        model_type="smollm3", architectures=["SmolLM3ForCausalLM"], attention_bias=False, mlp_bias=False,
        layer_types=["full_attention"] * 4, no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0], pretraining_tp=2,
        rope_scaling=None, sliding_window=None, pad_token_id=0,
    ),
    "mixtral": _OWN | _SIZES | dict(
        model_type="mixtral", architectures=["MixtralForCausalLM"], num_experts_per_tok=2, num_local_experts=8,
        output_router_logits=False, rope_theta=1e6, router_aux_loss_coef=0.02, sliding_window=None,
    ),
}  # fmt: skip


def _read(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    family, theirs = hf_config.read_config(folder)
    return family, theirs, hf_config.from_hf(family, theirs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_as_they_are_published_go_in_and_out(name, tmp_path):
    family, theirs, config = _read(tmp_path, PUBLISHED[name])
    assert not hf_config.check_class(family, theirs)
    assert hf_config.from_hf(family, hf_config.to_hf(config, family)) == config


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("qwen2.5", {"use_mrope": True}, "use_mrope = True: supported is False"),
        ("smollm2", {"rope_interleaved": True}, "rope_interleaved = True: supported is False"),
        ("phi-3", {"attention_bias": True}, "attention_bias = True: supported is False"),
        ("phi-4-mini", {"full_attn_mod": 2}, "full_attn_mod = 2: supported is 1"),
        ("llama-2", {"hidden_size": 63}, "config.json cannot be read"),
        ("llama-2", {"hidden_size": "wide"}, "config.json cannot be read"),
    ],
)
def test_the_same_keys_at_values_that_change_the_model_are_refused(name, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, PUBLISHED[name] | change)


@pytest.mark.parametrize(
    "rope",
    [
        dict(rope_type="linear", rope_theta=1e4, factor=None),
        dict(rope_type="longrope", rope_theta=1e4, short_factor=None, long_factor=[1.0] * 8)
        | dict(original_max_position_embeddings=16),
        dict(rope_type="yarn", rope_theta=1e4, factor="4x", original_max_position_embeddings=16),
        dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 8, long_factor=[1.0] * 8)
        | dict(original_max_position_embeddings=1),
    ],
)
def test_values_of_another_type_or_of_no_meaning_are_told_with_their_field(rope):
    theirs = PUBLISHED["llama-2"] | {"rope_parameters": rope}
    with pytest.raises(ValueError, match="rope_parameters = .*|could not convert"):
        hf_config.from_hf(FAMILIES["llama"], theirs)


@pytest.mark.parametrize("change", [["LlamaModel"], ["LLaMAForCausalLM"], None])
def test_a_bare_decoder_an_old_spelling_and_no_class_are_a_language_model(change, tmp_path):
    family, theirs, _ = _read(tmp_path, PUBLISHED["llama-2"] | {"architectures": change})
    assert not hf_config.check_class(family, theirs)
    assert hf_config.check_class(family, theirs | {"architectures": ["LlamaForSequenceClassification"]})


@pytest.mark.parametrize("name", ["LlamaForTokenClassification", "LlamaForRewardModelWithGating", "MistralForCausalLM"])
def test_a_class_that_computes_something_else_is_refused(name, tmp_path):
    family, theirs, _ = _read(tmp_path, PUBLISHED["llama-2"] | {"architectures": [name]})
    with pytest.raises(ValueError, match=f"architectures = .'{name}'.: not supported for llama: expected one of Llama"):
        hf_config.check_class(family, theirs)


def test_texts_have_the_length_at_which_a_models_positions_change(tmp_path):
    context = {name: _read(tmp_path, PUBLISHED[name])[2].context for name in ("gpt2", "phi-4-mini", "llama-3.1")}
    dynamic = _read(tmp_path, PUBLISHED["llama, dynamic by its old name"])[2].context
    assert context == {"gpt2": 64, "phi-4-mini": 1024, "llama-3.1": 0} and dynamic == 4096
