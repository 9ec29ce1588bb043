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
        ("qwen2.5", {"is_causal": False}, "is_causal = False: supported is True"),  # masks of every family look for it
        ("smollm2", {"attention_chunk_size": 8}, "attention_chunk_size = 8: transformers reads it"),
        ("llama-2", {"sliding_window": 8}, "sliding_window = 8: supported is None"),
        ("llama-2", {"layer_types": ["full_attention", "sliding_attention"] * 2}, "layer_types = .*: supported is"),
        ("llama-2", {"per_layer_config": {"0": {"intermediate_size": 8}}}, "per_layer_config = .*: transformers reads"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True: supported is False"),
        ("gpt2", {"n_head": 5}, "n_head = 5: expected a divisor of n_embd = 32"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2 entries: expected 4"),
        ("gemma-2", {"final_logit_softcapping": 0.0}, "final_logit_softcapping = 0.0: expected a number above 0"),
        ("gemma-2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0: expected a number above 0"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts = 0: expected a whole number above 0"),
        ("mistral", {"sliding_window": 0}, r"at least 1 token \(sliding_window\)"),
        ("llama-2", {"num_key_value_heads": 0}, r"kv_heads = 0: expected at least 1 \(num_key_value_heads\)"),
        ("qwen2.5", {"head_dim": "32"}, "config.json cannot be read.*without head_dim = '32' it can"),
        ("qwen2.5", {"head_dim": None}, "head_dim = None: expected a whole number above 0"),
        ("llama-2", {"pad_token_id": 96}, "pad_token_id = 96: the embedding has vocab_size = 96 rows"),
        ("llama-2", {"hidden_size": 63}, "config.json cannot be read.*without hidden_size = 63 it can"),
        ("llama-2", {"rms_norm_eps": 1}, "config.json cannot be read: .*rms_norm_eps.*without rms_norm_eps = 1 it can"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "without .*no_rope_layer_interval = 0"),
        ("llama-2", {"architectures": "LlamaModel2"}, "architectures = .'LlamaModel2'.: not supported"),
        ("llama-2", {"architectures": [3]}, r"architectures = \[3\]: not supported"),
    ],
)
def test_keys_that_are_read_at_values_that_change_the_model_are_refused_by_name(name, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        family, theirs, _ = _read(tmp_path, PUBLISHED[name] | change)
        hf_config.check_class(family, theirs)


@pytest.mark.parametrize(
    "name, change",
    [
        ("smollm2", {"unk_token_id": 0}),
        ("llama-2", {"cls_token_id": 500, "is_decoder": True, "qk_norm": True, "rope_interleaved": True}),
        ("llama-2", {"temperature": 0.7, "max_length": 20}),  # of generation: transformers takes them away
        ("llama-2", {"partial_rotary_factor": 0.5}),
        ("qwen2.5", {"use_mrope": True}),
        ("phi-3", {"attention_bias": True}),
        ("phi-4-mini", {"full_attn_mod": 2, "mlp_bias": True}),
        ("gemma-2", {"hidden_act": "gelu"}),
        ("qwen2.5 with yarn", {"rope_scaling": PUBLISHED["qwen2.5 with yarn"]["rope_scaling"] | {"finetuned": True}}),
    ],
)
def test_what_no_code_reads_is_told_and_changes_nothing(name, change, tmp_path):
    _, _, want = _read(tmp_path, PUBLISHED[name])
    family, theirs, got = _read(tmp_path, PUBLISHED[name] | change)
    told = " ".join(hf_config.unread(tmp_path, family, theirs))
    assert got == want and all(key.replace("rope_scaling", "finetuned") in told for key in change)


@pytest.mark.parametrize(
    "name, told",
    [
        ("llama-3.1", []),
        ("qwen3", []),
        ("olmo-2", []),
        ("mixtral", []),
        ("gemma-3", ["cache_implementation"]),
        ("smollm3", ["max_window_layers", "pretraining_tp"]),
    ],
)
def test_nothing_is_told_of_keys_that_are_read_or_declared(name, told, tmp_path):
    family, theirs, _ = _read(tmp_path, PUBLISHED[name])
    assert hf_config.unread(tmp_path, family, theirs) == told


@pytest.mark.parametrize("name", ["qwen2.5", "olmo-2", "phi-3", "smollm3", "qwen3-moe"])
def test_a_head_dim_of_its_own_counts_in_families_that_do_not_declare_one(name, tmp_path):
    """Their code takes it where it is; 64 / 4 is what it is where it is not."""
    sizes = {key: _read(tmp_path, PUBLISHED[name] | {"head_dim": key})[2].head_dim for key in (16, 32)}
    assert sizes == {16: 16, 32: 32}
    family, _, config = _read(tmp_path, PUBLISHED[name] | {"head_dim": 32})
    assert hf_config.from_hf(family, hf_config.to_hf(config, family)) == config


_THETA = "rope_theta = 10000.0 and rope_parameters.rope_theta = 500000.0: transformers takes 500000.0"
_LLAMA3 = PUBLISHED["llama-3.1"]["rope_scaling"]


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("llama-2", {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, _THETA),
        (
            "phi-3",
            {"partial_rotary_factor": 0.5, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},
            "partial_rotary_factor = 0.5 and rope_parameters.partial_rotary_factor = 1.0",
        ),
        ("llama-3.1", {"original_max_position_embeddings": 32}, "= 32 and rope_scaling.original_max.* = 8192"),
        (
            "phi-4-mini",
            {"rope_scaling": PUBLISHED["phi-4-mini"]["rope_scaling"] | {"type": "yarn"}},
            "takes 'longrope'",
        ),
        ("llama-3.1", {"rope_scaling": _LLAMA3 | {"type": "linear"}}, "rope_scaling.type = 'linear'"),
        ("llama-3.1", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_type = 'default'"),
        ("llama-3.1", {"rope_parameters": _LLAMA3 | {"rope_theta": 9e9}}, "rope_parameters.rope_theta = 9000000000.0"),
        ("gemma-3", {"rope_scaling": {"type": "linear", "factor": 8.0}}, "'linear': transformers takes 'default'"),
        ("gemma-3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters.rope_theta = 5"),
        ("gpt2", {"hidden_size": 64}, "hidden_size = 64 and n_embd = 32: transformers takes 64"),
        ("mixtral", {"num_experts": 4}, "num_experts = 4 and num_local_experts = 8"),
    ],
)
def test_a_value_that_another_one_overrides_is_refused_with_both(name, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        _read(tmp_path, PUBLISHED[name] | change)


def test_the_same_value_said_twice_is_no_clash(tmp_path):
    twice = {"rope_theta": 10000, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    assert _read(tmp_path, PUBLISHED["llama-2"] | twice)[2] == _read(tmp_path, PUBLISHED["llama-2"])[2]
    again = PUBLISHED["llama-3.1"] | {"rope_parameters": _LLAMA3}
    assert _read(tmp_path, again)[2] == _read(tmp_path, PUBLISHED["llama-3.1"])[2]


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
    with pytest.raises(ValueError, match="rope_parameters(.factor)? = .*"):
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
