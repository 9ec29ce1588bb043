"""Adapters in peft's format, without PyTorch: names of the tensors, the way out and in again, what is refused."""

import json

import hf_adapters
import hf_cases
import jax
import numpy as np
import pytest
from errors import names, refuses
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from alignax import lora
from alignax.interop.adapter_in import settings_of
from alignax.models.hf.peft_in import read_adapter

Q = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


@pytest.fixture
def plain(tmp_path):
    """A folder as peft writes it for a Llama: q_proj in both layers, no note of alignax in the header."""
    folder = tmp_path / "plain"
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {
        Q.format(i, x): hf_cases.weights(f"{x}{i}", (2, 24) if x == "A" else (24, 2)) for i in "01" for x in "AB"
    }
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def _config(folder, **changes):
    told = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(told | changes))


@pytest.mark.parametrize(
    "name, settings",
    [
        ("llama", {}),
        ("gpt2", {"dora": True, "targets": "^(q|v|down)$"}),
        ("phi3", {"rslora": True, "alpha": 5.0, "rank": 3}),
        ("gemma2", {"dora": True, "rslora": True}),
        ("qwen3_moe", {"targets": "^(q|k|v|o)$"}),
        ("gpt_neox", {"dora": True, "targets": "^(q|v|down)$"}),
        ("glm4", {}),
        ("gpt_oss", {"rslora": True}),
    ],
)
def test_an_adapter_comes_back_bit_for_bit(name, settings, tmp_path):
    model, params = hf_adapters.base(name)
    adapter = hf_adapters.fresh(params, **settings)
    tree = params | {"lora": adapter}
    out = hf_adapters.save(tmp_path / "a", name, model, tree, rslora=settings.get("rslora", False))
    back = hf_adapters.load(out, name, model)
    jax.tree.map(np.testing.assert_array_equal, back["lora"], adapter)
    told = settings_of(read_adapter(out), back)  # with which a stage goes on: the same shapes and the same scale
    again = lora.init(jax.random.key(0), params, **told)
    assert jax.tree.map(np.shape, again) == jax.tree.map(np.shape, adapter)
    for projection, one in adapter["layers"].items():
        np.testing.assert_allclose(again["layers"][projection]["scale"], one["scale"], rtol=1e-5)


def test_the_files_are_those_of_peft(tmp_path):
    model, params = hf_adapters.base("gpt2")
    tree = params | {"lora": hf_adapters.fresh(params, dora=True, targets="^(q|v|down)$")}
    out = hf_adapters.save(tmp_path / "a", "gpt2", model, tree)
    told = json.loads((out / "adapter_config.json").read_text())
    assert told == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "gpt2", "bias": "none",
        "fan_in_fan_out": True, "inference_mode": True, "init_lora_weights": True, "lora_alpha": 8, "lora_dropout": 0.0,
        "r": 4, "rank_pattern": {r"mlp\.c_proj": 2}, "alpha_pattern": {r"mlp\.c_proj": 4},
        "target_modules": ["c_attn", "mlp.c_proj"], "use_dora": True, "use_rslora": False,
    }  # fmt: skip
    shapes = {name: x.shape for name, x in load_file(out / "adapter_model.safetensors").items()}
    first = {name: shape for name, shape in shapes.items() if ".h.0." in name}
    assert len(shapes) == 2 * len(first) and first == {
        "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": (4, 24),
        "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight": (72, 4),
        "base_model.model.transformer.h.0.attn.c_attn.lora_magnitude_vector": (72,),
        "base_model.model.transformer.h.0.mlp.c_proj.lora_A.weight": (2, 96),
        "base_model.model.transformer.h.0.mlp.c_proj.lora_B.weight": (24, 2),
        "base_model.model.transformer.h.0.mlp.c_proj.lora_magnitude_vector": (24,),
    }


def test_a_joined_layer_is_the_same_product_and_its_parts_share_a_without_a_note(tmp_path):
    """A B of q, k and v side by side, from the stacked A and the diagonal of B; and again after peft has saved it."""
    model, params = hf_adapters.base("phi3")
    adapter = hf_adapters.fresh(params)
    out = hf_adapters.save(tmp_path / "a", "phi3", model, params | {"lora": adapter})
    tensors = load_file(out / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.1.self_attn.qkv_proj.lora_"
    got = (tensors[f"{stem}B.weight"] @ tensors[f"{stem}A.weight"]).T
    parts = [adapter["layers"][name] for name in "qkv"]
    want = np.concatenate([part["a"][1] @ part["b"][1] for part in parts], axis=1)
    np.testing.assert_allclose(got, want, atol=1e-6)

    save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})  # as peft does: without the note
    back = hf_adapters.load(out, "phi3", model)["lora"]["layers"]
    assert back["q"]["a"].shape == (2, 32, 6)
    np.testing.assert_array_equal(back["q"]["a"], back["v"]["a"])
    again = hf_adapters.save(tmp_path / "b", "phi3", model, params | {"lora": {"layers": back}})
    shared = load_file(again / "adapter_model.safetensors")  # q, k and v still have one A: what went in comes out
    assert all(shared[f"{stem}{x}.weight"].tobytes() == tensors[f"{stem}{x}.weight"].tobytes() for x in "AB")
    one, other = (lora.merge(params | {"lora": {"layers": x}})["decoder"]["layers"] for x in (back, adapter["layers"]))
    for name in one:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one[name], other[name])


def test_the_parts_of_a_layer_that_is_joined_head_by_head_take_turns_in_b(tmp_path):
    """Heads of 8: rows 0 to 7 of B are queries, the next 8 keys, and then values, of each of four heads."""
    model, params = hf_adapters.base("gpt_neox")
    adapter = hf_adapters.fresh(params, targets="^(q|k|v)$")
    out = hf_adapters.save(tmp_path / "a", "gpt_neox", model, params | {"lora": adapter})
    tensors = load_file(out / "adapter_model.safetensors")
    stem = "base_model.model.gpt_neox.layers.1.attention.query_key_value.lora_"
    got = (tensors[f"{stem}B.weight"] @ tensors[f"{stem}A.weight"]).T
    for part, name in enumerate("qkv"):
        one = adapter["layers"][name]
        mine = np.concatenate([got[:, 24 * head + 8 * part :][:, :8] for head in range(4)], axis=1)
        np.testing.assert_allclose(mine, one["a"][1] @ one["b"][1], atol=1e-6)


def test_a_note_that_the_tensors_do_not_bear_out_is_refused(tmp_path):
    model, params = hf_adapters.base("phi3")
    out = hf_adapters.save(tmp_path / "a", "phi3", model, params | {"lora": hf_adapters.fresh(params)})
    file = out / "adapter_model.safetensors"
    with safe_open(file, "numpy") as opened:
        note = opened.metadata()
    save_file({name: x + 1 for name, x in load_file(file).items()}, file, note)
    with refuses(ValueError, "qkv_proj", "lora_B", "{'q': 2, 'k': 2"):
        hf_adapters.load(out, "phi3", model)


def test_smaller_ranks_are_filled_up_and_scales_go_by_layer(plain):
    model, _ = hf_adapters.base("llama")
    _config(plain, rank_pattern={"layers.1.self_attn.q_proj": 1}, alpha_pattern={"layers.1.self_attn.q_proj": 3})
    tensors = load_file(plain / "adapter_model.safetensors")
    tensors |= {
        Q.format(1, "A"): tensors[Q.format(1, "A")][:1],
        Q.format(1, "B"): tensors[Q.format(1, "B")][:, :1].copy(),
    }
    save_file(tensors, plain / "adapter_model.safetensors")
    got = hf_adapters.load(plain, "llama", model)["lora"]["layers"]["q"]
    np.testing.assert_array_equal(got["scale"], [2.0, 3.0])
    np.testing.assert_array_equal(got["a"][1].T, np.stack([tensors[Q.format(1, "A")][0], np.zeros(24)]))
    assert got["b"][1, 0].any() and not got["b"][1, 1].any()


@pytest.mark.parametrize(
    "changes, key, word",
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3'", "'LORA'"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "task_type = 'SEQ_2_SEQ_LM'", "'CAUSAL_LM' or 'SEQ_CLS' or None"),
        ({"bias": "lora_only"}, "bias = 'lora_only'", "'none'"),
        ({"lora_bias": True}, "lora_bias = True", "not supported"),
        ({"layers_to_transform": [0]}, "layers_to_transform = [0]", "not supported"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices = [1, 2]", "not supported"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters = ['mlp.experts.down", "not supported"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens = [3]", "not supported"),
        ({"of_a_later_release": {"on": 1}}, "of_a_later_release = {'on': 1}", "not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = 'pissa_niter_4'", "base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'", "base"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save = ['embed_tokens']", "scalar"),
        ({"r": 0}, "r = 0:", "1"),
        ({"rank_pattern": {"q_proj": "4"}}, "rank_pattern.q_proj = '4':", "1"),
    ],
)
def test_a_field_that_alignax_cannot_hold_is_named(changes, key, word, plain):
    _config(plain, **changes)
    with refuses(ValueError, key, word):
        read_adapter(plain)


def test_fields_that_are_off_say_nothing_and_all_faults_are_told_at_once(plain):
    _config(plain, of_a_later_release=None, lora_bias=False, layer_replication=[], loftq_config={}, lora_dropout=0.1)
    assert read_adapter(plain).config["lora_dropout"] == 0.1
    _config(plain, lora_bias=True, bias="all", r=-1)
    with refuses(ValueError, "lora_bias = True", "bias = 'all'", "r = -1"):
        read_adapter(plain)


@pytest.mark.parametrize(
    "targets, key, word",
    [
        (["q_proj", "v_proj"], "layers.1.self_attn.v_proj.lora_B.weight: missing", "(12, 2)"),
        (["o_proj"], "layers.0.self_attn.q_proj.lora_A.weight (2, 24)", "target_modules"),
        (r".*layers\.0.*q_proj", "layers.{i}.self_attn.q_proj", "all"),
        (["lm_head"], "target_modules = ['lm_head']", "self_attn.q_proj, self_attn.k"),
    ],
)
def test_targets_that_are_not_those_of_the_tensors_are_told(targets, key, word, plain):
    model, _ = hf_adapters.base("llama")
    _config(plain, target_modules=targets)
    with refuses(ValueError, key, word):
        hf_adapters.load(plain, "llama", model)


def test_all_faults_of_the_tensors_are_told_at_once(plain):
    model, _ = hf_adapters.base("llama")
    tensors = load_file(plain / "adapter_model.safetensors")
    del tensors[Q.format(0, "A")]
    tensors |= {
        Q.format(1, "B"): np.zeros((24, 3), np.float32),
        "base_model.model.lm_head.lora_A.weight": np.zeros((2, 24)),
    }
    save_file(tensors, plain / "adapter_model.safetensors")
    with refuses(ValueError, "layers.0.self_attn.q_proj.lora_A.weight:", "missing", "(2, 24)") as error:
        hf_adapters.load(plain, "llama", model)
    names(str(error.value), "layers.1.self_attn.q_proj.lora_B.weight (24, 3):", "(24, 2)")
    names(str(error.value), "lm_head.lora_A.weight (2, 24)", "target_modules")


@pytest.mark.parametrize(
    "change, key, word",
    [
        (dict(lora_alpha=None), "lora_alpha = None", "number"),
        (dict(alpha_pattern={"q_proj": "8"}), "alpha_pattern.q_proj = '8'", "number"),
        (dict(alpha_pattern=["q_proj"]), "alpha_pattern = ['q_proj']", "object"),
        (dict(target_modules="q_proj("), "target_modules = 'q_proj('", "regular"),
    ],
)
def test_settings_of_another_type_are_named(plain, change, key, word):
    _config(plain, **change)
    with refuses(ValueError, key, word):
        read_adapter(plain)


def test_an_adapter_of_another_kind_of_number_or_of_none_is_told(plain):
    model, _ = hf_adapters.base("llama")
    tensors = load_file(plain / "adapter_model.safetensors")
    tensors[Q.format(0, "A")] = tensors[Q.format(0, "A")].astype(np.int8)
    save_file(tensors, plain / "adapter_model.safetensors")
    with refuses(ValueError, "lora_A.weight", "I8", "F32, F16, BF16"):
        hf_adapters.load(plain, "llama", model)
    tensors[Q.format(0, "A")] = np.full(tensors[Q.format(0, "A")].shape, np.nan, np.float32)
    save_file(tensors, plain / "adapter_model.safetensors")
    with refuses(ValueError, "lora_A.weight", "inf or nan"):
        hf_adapters.load(plain, "llama", model)


def test_a_base_of_another_shape_and_an_adapter_of_experts_are_told(plain):
    model, _ = hf_adapters.base("phi3")
    with refuses(ValueError, "none of", "self_attn.qkv_proj, mlp.gate_up_proj"):
        hf_adapters.load(plain, "phi3", model)
    model, _ = hf_adapters.base("qwen3_moe")
    tensors = load_file(plain / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.0.mlp.experts.lora_"
    save_file(tensors | {f"{stem}A.weight": np.zeros((8, 16), np.float32)}, plain / "adapter_model.safetensors")
    with refuses(ValueError, "q_proj.lora_B.weight (24, 2):", "(32, 2)", "experts.lora_A", "exp"):
        hf_adapters.load(plain, "qwen3_moe", model)


def test_files_that_are_absent_or_damaged_are_named(plain):
    (plain / "adapter_model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")
    with refuses(ValueError, "adapter_model.safetensors", "damaged"):
        read_adapter(plain)
    (plain / "adapter_model.safetensors").unlink()
    with refuses(ValueError, "adapter_model.safetensors", "pickled"):
        read_adapter(plain)
    (plain / "adapter_config.json").unlink()
    with refuses(ValueError, "adapter_config.json", "read"):
        read_adapter(plain)
