"""Configs as they are published, and what is refused, passed over or told where one says more or something else."""

import json

import pytest
from errors import refuses
from hf_published import PUBLISHED

from alignax.models.hf import config as hf_config
from alignax.models.hf.families import FAMILIES


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
    "name, change, key, word",
    [
        ("qwen2.5", {"is_causal": False}, "is_causal = False:", "True"),  # masks of every family look for it
        ("smollm2", {"attention_chunk_size": 8}, "attention_chunk_size = 8:", "transformers"),
        ("llama-2", {"sliding_window": 8}, "sliding_window = 8:", "None"),
        (
            "llama-2",
            {"layer_types": ["full_attention", "sliding_attention"] * 2},
            "layer_types = [",
            "['full_attention'",
        ),
        ("llama-2", {"per_layer_config": {"0": {"intermediate_size": 8}}}, "per_layer_config = {", "transformers"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True:", "False"),
        ("gpt2", {"n_head": 5}, "n_head = 5:", "n_embd = 32"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers has 2", "4"),
        ("gemma-2", {"final_logit_softcapping": 0.0}, "final_logit_softcapping = 0.0:", "above"),
        ("gemma-2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0:", "above"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts = 0:", "whole"),
        ("mistral", {"sliding_window": 0}, "window = 0:", "(sliding_window)"),
        ("llama-2", {"num_key_value_heads": 0}, "kv_heads = 0:", "(num_key_value_heads)"),
        ("qwen2.5", {"head_dim": "32"}, "config.json cannot", "head_dim = '32'"),
        ("qwen2.5", {"head_dim": None}, "head_dim = None:", "whole"),
        ("llama-2", {"pad_token_id": 96}, "pad_token_id = 96:", "vocab_size = 96"),
        ("llama-2", {"hidden_size": 63}, "config.json cannot", "hidden_size = 63"),
        ("llama-2", {"rms_norm_eps": 1}, "config.json cannot", "rms_norm_eps = 1"),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "config.json", "no_rope_layer_interval = 0"),
        ("llama-2", {"architectures": "LlamaModel2"}, "architectures = ['LlamaModel2']", "LlamaForCausalLM"),
        ("llama-2", {"architectures": [3]}, "architectures = [3]", "LlamaForCausalLM"),
        ("llama-2", {"hidden_size": "wide"}, "config.json cannot", "hidden_size = 'wide'"),
        ("pythia", {"head_dim": 8}, "head_dim = 8:", "num_attention_heads = 16"),
        ("pythia", {"num_attention_heads": 0}, "config.json cannot", "num_attention_heads = 0"),
        ("olmo-7b-0424", {"clip_qkv": 0.0}, "clip_qkv = 0.0:", "above"),
        ("granite-3.3", {"attention_multiplier": 0}, "attention_multiplier = 0:", "above"),
        ("granite-3.3", {"logits_scaling": -8.0}, "logits_scaling = -8.0:", "above"),
        ("ministral", {"head_dim": None}, "head_dim = None:", "whole"),
        ("glm-4-0414", {"layer_types": ["sliding_attention"] * 4}, "layer_types = [", "['full_attention'"),
        ("gpt-oss, dequantised", {"swiglu_limit": 0.0}, "swiglu_limit = 0.0:", "above"),
        ("gpt-oss, dequantised", {"token_classification_bias": True}, "token_classification_bias = True:", "reads"),
        ("mistral-small-3.1", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config = {", "bfloat16"),
        ("ministral-3", {"text_config": dict(model_type="mamba")}, "architecture 'mamba'", "llama"),
    ],
)
def test_keys_that_are_read_at_values_that_change_the_model_are_refused_by_name(name, change, key, word, tmp_path):
    with refuses(ValueError, key, word):
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
        ("mistral-small-3.1", {"frobnicate": 3, "temperature": 0.5}),  # beside the text part
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
        ("pythia", []),  # of is_decoder, which it declares, as gpt-oss its hidden_act
        ("gpt-neox-20b", ["attention_probs_dropout_prob", "hidden_dropout_prob"]),
        ("ministral-3", []),  # llama_4_scaling_beta is in the group
        ("gpt-oss, dequantised", ["experts_per_token", "initial_context_length"]),
        ("gemma-3", ["cache_implementation"]),
        ("smollm3", ["max_window_layers", "pretraining_tp"]),
    ],
)
def test_nothing_is_told_of_keys_that_are_read_or_declared(name, told, tmp_path):
    family, theirs, _ = _read(tmp_path, PUBLISHED[name])
    assert hf_config.unread(tmp_path, family, theirs) == told


@pytest.mark.parametrize(
    "name", ["qwen2.5", "olmo-2", "phi-3", "smollm3", "qwen3-moe", "olmo-1b", "olmo-3", "granite-3.3"]
)
def test_a_head_dim_of_its_own_counts_in_families_that_do_not_declare_one(name, tmp_path):
    """Their code takes it where it is; 64 / 4 is what it is where it is not."""
    sizes = {key: _read(tmp_path, PUBLISHED[name] | {"head_dim": key})[2].head_dim for key in (16, 32)}
    assert sizes == {16: 16, 32: 32}
    family, _, config = _read(tmp_path, PUBLISHED[name] | {"head_dim": 32})
    assert hf_config.from_hf(family, hf_config.to_hf(config, family)) == config


_LLAMA3 = PUBLISHED["llama-3.1"]["rope_scaling"]
_TEXT = PUBLISHED["ministral-3"]["text_config"]


@pytest.mark.parametrize(
    "name, change, key, word",
    [
        (
            "llama-2",
            {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_theta = 10000.0",
            "500000.0",
        ),
        (
            "phi-3",
            {"partial_rotary_factor": 0.5, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},
            "partial_rotary_factor = 0.5",
            "rope_parameters.partial_rotary_factor = 1.0",
        ),
        ("llama-3.1", {"original_max_position_embeddings": 32}, "embeddings = 32", "embeddings = 8192"),
        (
            "phi-4-mini",
            {"rope_scaling": PUBLISHED["phi-4-mini"]["rope_scaling"] | {"type": "yarn"}},
            "rope_scaling.type = 'yarn'",
            "'longrope'",
        ),
        ("llama-3.1", {"rope_scaling": _LLAMA3 | {"type": "linear"}}, "rope_scaling.type = 'linear'", "'llama3'"),
        (
            "llama-3.1",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_type = 'default'",
            "'llama3'",
        ),
        ("llama-3.1", {"rope_parameters": _LLAMA3 | {"rope_theta": 9e9}}, "rope_theta = 9000000000.0", "500000.0"),
        ("gemma-3", {"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_scaling.type = 'linear'", "'default'"),
        (
            "gemma-3",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            "rope_theta = 500000.0",
            "1000000",
        ),
        ("gpt2", {"hidden_size": 64}, "hidden_size = 64 and n_embd = 32", "64"),
        ("mixtral", {"num_experts": 4}, "num_experts = 4 and num_local_experts = 8", "4"),
        ("pythia", {"rope_theta": 5e5}, "rope_theta = 500000.0", "rotary_emb_base = 10000"),
        ("pythia", {"rope_parameters": {"partial_rotary_factor": 1.0}}, "rotary_pct = 0.25", "takes 1.0"),
        ("ministral-3", {"text_config": _TEXT | {"rope_theta": 5.0}}, "rope_theta = 5.0", "1000000.0"),
        ("mistral-small-3.1", {"rope_theta": 5.0}, "rope_theta = 5.0:", "1000000000.0"),
        ("mistral-small-3.1", {"sliding_window": 8}, "sliding_window = 8 beside text_config", "None"),
        ("mistral-small-3.1", {"vocab_size": 97, "hidden_size": 64}, "vocab_size = 97 beside text_config", "96"),
        ("mistral-small-3.1", {"attention_chunk_size": 8}, "attention_chunk_size = 8 beside text_config", "None"),
        ("gemma-3 with images", {"is_causal": False}, "is_causal = False beside text_config", "None"),
    ],
)
def test_a_value_that_another_one_overrides_is_refused_with_both(name, change, key, word, tmp_path):
    with refuses(ValueError, key, word):
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
    with refuses(ValueError, "rope_parameters", " = "):
        hf_config.from_hf(FAMILIES["llama"], theirs)


@pytest.mark.parametrize("change", [["LlamaModel"], ["LLaMAForCausalLM"], None])
def test_a_bare_decoder_an_old_spelling_and_no_class_are_a_language_model(change, tmp_path):
    family, theirs, _ = _read(tmp_path, PUBLISHED["llama-2"] | {"architectures": change})
    assert not hf_config.check_class(family, theirs)
    assert hf_config.check_class(family, theirs | {"architectures": ["LlamaForSequenceClassification"]})


def test_a_family_without_a_class_for_scores_has_the_other_two(tmp_path):
    family, theirs, _ = _read(tmp_path, PUBLISHED["granite-3.3"])
    assert not hf_config.check_class(family, theirs | {"architectures": ["GraniteModel"]})
    with refuses(ValueError, "GraniteForSequenceClassification", "GraniteForCausalLM, Gran"):
        hf_config.check_class(family, theirs | {"architectures": ["GraniteForSequenceClassification"]})


@pytest.mark.parametrize("name", ["LlamaForTokenClassification", "LlamaForRewardModelWithGating", "MistralForCausalLM"])
def test_a_class_that_computes_something_else_is_refused(name, tmp_path):
    family, theirs, _ = _read(tmp_path, PUBLISHED["llama-2"] | {"architectures": [name]})
    with refuses(ValueError, f"architectures = ['{name}']:", "llama:", "Llama"):
        hf_config.check_class(family, theirs)


def test_texts_have_the_length_at_which_a_models_positions_change(tmp_path):
    context = {name: _read(tmp_path, PUBLISHED[name])[2].context for name in ("gpt2", "phi-4-mini", "llama-3.1")}
    dynamic = _read(tmp_path, PUBLISHED["llama, dynamic by its old name"])[2].context
    assert context == {"gpt2": 64, "phi-4-mini": 1024, "llama-3.1": 0} and dynamic == 4096
