"""Every family from a checkpoint folder: configs and tensors in both directions, what is refused, and the logits.

Those of transformers come from a file, which tests/goldens/make_families.py makes.
"""

import dataclasses
import itertools
import json
from pathlib import Path

import hf_cases
import hf_runs
import jax
import numpy as np
import pytest
from errors import names, refuses
from safetensors.numpy import load_file, save_file

from alignax.models.config import ModelConfig
from alignax.models.hf import config as hf_config
from alignax.models.hf.families import FAMILIES
from alignax.models.hf.weights import save_weights

# all that decoding does apart
DECODED = (
    "gpt2",
    "mistral_short_window",
    "gemma2",
    "gemma3",
    "smollm3",
    "mixtral",
    "gpt_neox",
    "ministral3",
    "gpt_oss",
)
GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "families.npz")


@pytest.mark.parametrize("name", hf_cases.CASES)
def test_logits_are_those_of_transformers_in_one_pass_and_token_by_token(name, tmp_path):
    model, params = hf_runs.load(hf_runs.write(name, tmp_path / name))
    _, valid = hf_cases.inputs()
    np.testing.assert_allclose(hf_runs.forward(model, params)[valid], GOLDEN[name][valid], atol=1e-4)
    assert GOLDEN[name][valid].std() > 0.3
    if name in DECODED:
        rows = np.array([True, True, False])  # those without padding behind
        want = GOLDEN[name][rows][valid[rows]]
        np.testing.assert_allclose(hf_runs.decoded(model, params)[rows][valid[rows]], want, atol=1e-4)


@pytest.mark.parametrize("name", hf_cases.CASES)
def test_configs_come_back_as_they_were_and_name_their_family(name):
    family, config = hf_runs.config_of(name)
    there = hf_config.to_hf(config, family)
    assert hf_config.from_hf(family, there) == config
    plain = dataclasses.replace(config, vocab_rows=0)
    assert hf_config.from_hf(hf_config.family_of(plain), hf_config.to_hf(plain, hf_config.family_of(plain))) == config


@pytest.mark.parametrize(
    "name, dtype",
    [
        *itertools.product(("gpt2", "phi3", "qwen3_moe", "gemma2"), ("float32", "bfloat16")),
        *(("gpt_neox", "bfloat16"), ("gpt_oss", "bfloat16")),
    ],
)
def test_weights_go_out_as_they_came_in_over_several_files_and_devices(name, dtype, tmp_path):
    np_dtype = np.dtype(jax.numpy.dtype(dtype))
    first = hf_runs.write(name, tmp_path / "in", dtype=np_dtype)
    model, params = hf_runs.load(first, fsdp=8)
    spread = {leaf.sharding.spec for leaf in jax.tree.leaves(params) if not leaf.is_fully_replicated}
    assert spread  # some of the tree is cut over the eight devices
    out = tmp_path / "out"
    out.mkdir()
    family, _ = hf_config.read_config(first)
    save_weights(out, family, model.config, params, dtype=dtype, shard_bytes=9_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files[0].startswith("model-00001-of-0")
    got = {k: v for file in files for k, v in load_file(out / file).items()}
    want = load_file(first / "model.safetensors")
    assert set(got) == set(want) == set(index["weight_map"])
    for key, value in want.items():
        assert got[key].dtype == value.dtype == np_dtype and got[key].tobytes() == value.tobytes(), key
    (out / "config.json").write_text((first / "config.json").read_text())
    _, again = hf_runs.load(out)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again), jax.device_get(params))


@pytest.mark.parametrize(
    "name, prefix, buffers",
    [
        ("gpt2", "transformer.", ("h.0.attn.bias",)),
        (
            "gpt_neox_in_series", "gpt_neox.",
            tuple(f"layers.0.attention.{x}" for x in ("bias", "masked_bias", "rotary_emb.inv_freq")),
        ),
    ],
)  # fmt: skip
def test_a_checkpoint_of_the_bare_decoder_has_the_same_tensors_without_the_prefix(name, prefix, buffers, tmp_path):
    folder = hf_runs.write(name, tmp_path / name)
    _, want = hf_runs.load(folder)
    tensors = load_file(folder / "model.safetensors")
    old = {buffer: np.ones((1, 1, 4, 4), np.float32) for buffer in buffers}  # which old files carry
    bare = {name.removeprefix(prefix): x for name, x in tensors.items()} | old
    save_file(bare, folder / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(hf_runs.load(folder)[1]), jax.device_get(want))


def test_rows_of_the_embedding_beyond_the_tokenizer_stay_and_get_no_probability(tmp_path):
    family, theirs = hf_config.read_config(hf_runs.write("qwen2", tmp_path / "q"))
    config = hf_config.from_hf(family, theirs, tokens=45)
    assert (config.vocab_size, config.padded_vocab, hf_config.to_hf(config, family)["vocab_size"]) == (45, 64, 50)
    with refuses(ValueError, "51 tokens", "50 rows"):
        hf_config.from_hf(family, theirs, tokens=51)


@pytest.mark.parametrize(
    "name, change, key, word",
    [
        ("llama", {"model_type": "mamba"}, "architecture 'mamba'", "llama, mistral"),
        ("llama", {"model_type": "lama", "auto_map": {"AutoConfig": "code.X"}}, "architecture 'lama'", "llama"),
        ("llama", {"hidden_act": "relu"}, "hidden_act = 'relu'", "silu"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantization_config = {", "None"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4, "factor": 4.0}},
            "rope_parameters.rope_type = 'proportional'",
            "default, dynamic, linear, llama3, yarn",
        ),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True", "None or False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True", "False"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers = [0]", "[]"),
        ("gpt_oss", {"swiglu_alpha": 1.5}, "swiglu_alpha = 1.5", "1.702"),
        (
            "gpt_oss",
            {"quantization_config": {"quant_method": "mxfp4"}},
            "quantization_config = {'quant_method': 'mxfp4'}",
            "dequantize",
        ),
        ("ministral3", {"rope_parameters": {"rope_theta": 1e4}}, "llama_4_scaling_beta", "missing"),
    ],
)
def test_what_alignax_cannot_compute_is_named_and_never_ignored(name, change, key, word, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hf_cases.CASES[name] | change))
    with refuses(ValueError, key, word):
        hf_config.from_hf(*hf_config.read_config(tmp_path))


def test_all_faults_of_a_config_are_told_at_once(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(hf_cases.CASES["llama"] | {"hidden_act": "relu", "is_causal": 2}))
    with refuses(ValueError, "is_causal = 2", "hidden_act = 'relu'"):
        hf_config.from_hf(*hf_config.read_config(tmp_path))


def test_all_faults_of_the_tensors_are_told_at_once(tmp_path):
    folder = hf_runs.write("llama", tmp_path / "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((40, 23), np.float32)
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((40, 24), np.float32)
    save_file(tensors, folder / "model.safetensors")
    with refuses(ValueError, "3 tensors", "config.json") as error:
        hf_runs.load(folder)
    names(str(error.value), "model.norm.weight:", "missing", "(24,)")
    names(str(error.value), "model.layers.1.mlp.up_proj.weight (40, 23):", "(40, 24)")
    names(str(error.value), "model.layers.2.mlp.up_proj.weight (40, 24):", "no such")


def _rewritten(folder, change):
    """The folder, its tensors changed by a function of them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "name, embedding, output, dtype",
    [
        ("qwen2", "model.embed_tokens.weight", "lm_head.weight", np.float32),
        ("qwen2", "model.embed_tokens.weight", "lm_head.weight", jax.numpy.bfloat16),
        ("gpt_neox_in_series", "gpt_neox.embed_in.weight", "embed_out.weight", np.float32),
    ],
)
def test_an_output_layer_of_its_own_in_a_tied_model_is_told_and_a_copy_is_none(
    name, embedding, output, dtype, tmp_path
):
    folder = hf_runs.write(name, tmp_path / name, dtype=np.dtype(dtype))
    _, want = hf_runs.load(folder)
    _rewritten(folder, lambda t: t.update({output: t[embedding].copy()}))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(hf_runs.load(folder)[1]), jax.device_get(want))
    _rewritten(folder, lambda t: t[output].__setitem__((0, 0), 9.0))
    with refuses(ValueError, output, f"differs from {embedding}"):
        hf_runs.load(folder)
    _rewritten(folder, lambda t: t.update({output: t[output][:40]}))
    with refuses(ValueError, f"{output} (40, ", "expected (50, "):
        hf_runs.load(folder)


def test_tensors_of_another_kind_than_floats_of_16_or_32_bits_are_told(tmp_path):
    folder = hf_runs.write("llama", tmp_path / "llama")
    name, other = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
    _rewritten(folder, lambda t: t.update({name: t[name].astype(np.int8), other: t[other].astype(np.float64)}))
    with refuses(ValueError, name, "I8", "F32, F16, BF16", other, "F64"):
        hf_runs.load(folder)


def test_a_tensor_that_is_no_number_any_more_is_named(tmp_path):
    folder = hf_runs.write("llama", tmp_path / "llama", dtype=np.float16)
    _rewritten(folder, lambda t: t["model.norm.weight"].__setitem__(3, np.nan))
    with refuses(ValueError, "model.norm.weight", "inf or nan"):
        hf_runs.load(folder)


def test_numbers_that_a_dtype_cannot_hold_are_not_written(tmp_path):
    model, params = hf_runs.load(hf_runs.write("llama", tmp_path / "in"))
    params["decoder"]["norm"]["scale"] = params["decoder"]["norm"]["scale"].at[0].set(1e5)
    with refuses(ValueError, "model.norm.weight", "100000", "65504"):
        save_weights(tmp_path, FAMILIES["llama"], model.config, params, dtype="float16")


def test_one_file_beside_an_index_is_what_is_read(tmp_path):
    """As in transformers; the index may be left over from before the files were joined, or be of another model."""
    folder = hf_runs.write("llama", tmp_path / "llama")
    _, want = hf_runs.load(folder)
    tensors = {name: 0 * x for name, x in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(hf_runs.load(folder)[1]), jax.device_get(want))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}'])
def test_a_damaged_index_is_named(content, tmp_path):
    folder = hf_runs.write("llama", tmp_path / "llama")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with refuses(ValueError, "model.safetensors.index.json", "damaged"):
        hf_runs.load(folder)


def test_files_that_are_absent_or_damaged_are_named(tmp_path):
    folder = hf_runs.write("llama", tmp_path / "llama")
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")
    with refuses(ValueError, "model.safetensors is", "damaged"):
        hf_runs.load(folder)
    (folder / "model.safetensors").unlink()
    with refuses(ValueError, "no model.safetensors", "no model.safetensors.index.json"):
        hf_runs.load(folder)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with refuses(ValueError, "not there", "model-00001-of-00002.safetensors"):
        hf_runs.load(folder)


def test_an_architecture_that_no_family_has_says_why_for_each():
    config = ModelConfig(8, norm="layer", gated=True)
    with refuses(ValueError, "no family", "transformers") as error:
        hf_config.family_of(config)
    assert all(f"no {name} model" in str(error.value) for name in FAMILIES)


@pytest.mark.parametrize(
    "change, key, word",
    [
        (dict(pattern=("sliding",)), "window = 0:", "sliding"),
        (dict(pattern=("ring",)), "pattern = ('ring',)", "full, sliding, nope"),
        (dict(positions="learned"), "max_positions = 0:", "table"),
        (dict(experts=4), "experts_per_token = 0:", "experts = 4"),
        (dict(experts=2, experts_per_token=1, gated=False), "gated = False:", "experts"),
        (dict(up_offset=1.0, gated=False), "gated = False:", "up_offset"),
        (dict(qkv_clip=-8.0), "qkv_clip = -8.0:", "above"),
        (dict(logit_divisor=0.0), "logit_divisor = 0.0:", "above"),
        (dict(rope_fraction=0.3), "rope_fraction = 0.3", "even"),
        (dict(rope_type="longrope", rope_factors=(1.0, 2.0)), "rope_factors = (1.0, 2.0):", "3"),
        (dict(rope_type="dynamic"), "max_positions = 0:", "'dynamic'"),
        (dict(rope_factor=0.0), "rope_factor = 0.0,", "above"),
        (dict(rope_type="yarn", rope_low=4.0), "rope_low = 4.0, rope_high = 4.0", "low < high"),
        (dict(norm_at="above"), "norm_at = 'above'", "'before', 'after', 'both'"),
    ],
)
def test_configs_that_cannot_be_built_say_why(change, key, word):
    with refuses(ValueError, key, word):
        ModelConfig(8, head_dim=6, **change)


def test_a_pattern_has_one_name():
    assert ModelConfig(8, layers=4, pattern=("nope", "full", "nope", "full")).pattern == ("nope", "full")
    assert ModelConfig(8, layers=3, pattern=("full", "full")) == ModelConfig(8, layers=3)
    assert ModelConfig(8, layers=3, pattern=("nope", "full")).kinds == ("nope", "full", "nope")
