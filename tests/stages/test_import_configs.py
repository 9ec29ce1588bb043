"""What a checkpoint's config files say beside its architecture: ends, labels, keys that nothing reads, lengths."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from errors import names, refuses
from safetensors.numpy import load_file, save_file
from stage_runs import fails, read
from tokenizers import AddedToken

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import hf_cases
import hf_runs
import hf_smollm2

from alignax import sharding
from alignax.checkpoint import load_params
from alignax.config import ConfigError
from alignax.data.encode import demo_rows, encode_prompt
from alignax.data.templates import stop_ids
from alignax.data.tokenizer import load_tokenizer
from alignax.interop.adapter_in import say_own
from alignax.interop.export import export
from alignax.main import main
from alignax.models.config import ModelConfig
from alignax.models.hf import config as hf_config
from alignax.stages import folder as folders
from alignax.stages import online, parents
from alignax.worlds.tokenizer import build_tokenizer

V = len(build_tokenizer())
CASE = hf_cases.CASES["llama"] | {"vocab_size": V, "bos_token_id": None, "eos_token_id": [2, 7, 9]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A Llama with the tokenizer of the world."""
    folder = tmp_path_factory.mktemp("theirs") / "llama"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hf_cases.CASES, "world", CASE)
        hf_runs.write("world", folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def theirs(weights, tmp_path):
    """A copy of it to be changed."""
    return shutil.copytree(weights, tmp_path / "theirs")


def said(folder, **changes):
    """Rewrites config.json; returns it."""
    (folder / "config.json").write_text(json.dumps(CASE | changes))
    return CASE | changes


def test_the_published_smollm2_is_read_but_for_the_key_that_nothing_reads(tmp_path):
    shutil.copytree(hf_smollm2.FILES, tmp_path, dirs_exist_ok=True)
    family, theirs = hf_config.read_config(tmp_path)
    assert hf_config.unread(tmp_path, family, theirs) == ["unk_token_id"]
    assert hf_config.from_hf(family, theirs, tokens=49152) == ModelConfig(
        vocab_size=49152, vocab_rows=49152, dim=576, layers=30, heads=9, kv_heads=3, head_dim=64, ffn=1536,
        rope_theta=1e5, norm_eps=9.999999747378752e-06, tie_embeddings=True, max_positions=8192,
    )  # fmt: skip


def test_smollm2_comes_in_talks_by_its_template_and_goes_out_as_it_was(tmp_path, capsys):
    folder = hf_smollm2.write(tmp_path / "theirs")
    assert main(["import", str(folder), str(tmp_path / "ours")]) == 0
    assert "reads nothing of unk_token_id" in capsys.readouterr().err
    tokenizer = load_tokenizer(str(tmp_path / "ours/tokenizer"))
    assert stop_ids(tokenizer, "chat") == {2}
    asked = tokenizer.decode(encode_prompt(tokenizer, [{"role": "user", "content": "hi"}], "chat"))
    assert asked.startswith("<|im_start|>system\nYou are") and asked.endswith("<|im_start|>assistant\n")
    out = export(tmp_path / "ours", tmp_path / "out")
    for name in ("model.safetensors", "generation_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (folder / name).read_bytes(), name
    assert read(out / "config.json") == hf_smollm2.config() | hf_smollm2.SIZES


@pytest.mark.parametrize(
    "generation, stops, told",
    [
        (None, {2, 7, 9}, ()),  # `generate` makes its settings of config.json
        ({"temperature": 0.7}, {2, 7, 9}, ()),  # it would never stop
        ({"eos_token_id": [2, 7, 9, 5]}, {2, 5, 7, 9}, ()),
        ({"eos_token_id": [2, 5]}, {2, 5}, ("[7, 9] of config.json are not in generation_config.json",)),
        ({"eos_token_id": [2, 7, 9, 10**6, -1]}, {2, 7, 9}, ("[-1, 1000000] are no tokens",)),
    ],
)
def test_every_end_that_counts_for_generate_stops(generation, stops, told, theirs, tmp_path, capsys):
    if generation is not None:
        (theirs / "generation_config.json").write_text(json.dumps(generation))
    assert main(["import", str(theirs), str(tmp_path / "ours")]) == 0
    err = " ".join(capsys.readouterr().err.split())
    tokenizer = load_tokenizer(str(tmp_path / "ours/tokenizer"))
    assert tokenizer.eos_token_id == 2 and stop_ids(tokenizer, "plain") == stops
    assert err.count("eos_token_id: ") == len(told) and all(text in err for text in told)


def test_an_end_that_no_file_names_is_no_end(theirs, tmp_path, capsys):
    """Llama's config class has 2 there, whatever the vocabulary."""
    config = {key: value for key, value in CASE.items() if key != "eos_token_id"}
    (theirs / "config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(str(theirs))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(7)
    tokenizer.save_pretrained(theirs)
    assert main(["import", str(theirs), str(tmp_path / "ours")]) == 0
    assert stop_ids(load_tokenizer(str(tmp_path / "ours/tokenizer")), "plain") == {7}


def with_token(folder, token, *, special, **names):
    """The folder with one token more than its embedding has rows."""
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens([AddedToken(token, special=special)], special_tokens=special)
    for name, value in names.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)


def test_an_images_place_beyond_the_embedding_is_no_word(theirs, tmp_path, capsys):
    """Gemma 3 of 1B has the tokenizer of those that read images: 262,145 tokens for 262,144 rows."""
    with_token(theirs, "<image_soft_token>", special=True)
    assert main(["import", str(theirs), str(tmp_path / "ours")]) == 0
    assert f"<image_soft_token> beyond the embedding's {V} rows" in " ".join(capsys.readouterr().err.split())
    assert read(tmp_path / "ours/manifest.json")["architecture"]["vocab_size"] == V
    tokenizer = load_tokenizer(str(tmp_path / "ours/tokenizer"))
    rows = [{"prompt": "a", "completion": text} for text in ("b", "c <image_soft_token>")]
    counts = demo_rows(rows, tokenizer, template="plain", max_length=64)[1]
    assert counts == {"rows": 2, "kept": 1, "dropped_special_token": 1}
    out = export(tmp_path / "ours", tmp_path / "out")
    assert read(out / "config.json")["vocab_size"] == V
    assert (out / "tokenizer.json").read_bytes() == (theirs / "tokenizer.json").read_bytes()
    assert "embedding_rows" not in (out / "tokenizer_config.json").read_text()


WRITTEN = {"pad_token": "<more>"}, {"eos_token": "<more>"}, {"chat_template": "<more>{{ messages[0].content }}"}


@pytest.mark.parametrize("special, roles", [(False, {}), *((True, roles) for roles in WRITTEN)])
def test_a_token_beyond_the_embedding_that_may_be_written_is_refused(special, roles, theirs, tmp_path, capsys):
    with_token(theirs, "<more>", special=special, **roles)
    names(fails(capsys, "import", theirs, tmp_path / "ours"), f"{V + 1} tokens", f"{V} rows")


def test_keys_that_no_code_reads_come_back_unchanged(theirs, tmp_path, capsys):
    """Settings of generation too: where there is no generation_config.json, `generate` takes them from here."""
    old = {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float32"}
    was = said(theirs, **old, temperature=0.5, unk_token_id=0, wings=[2])
    assert main(["import", str(theirs), str(tmp_path / "ours")]) == 0
    assert "reads nothing of temperature, unk_token_id, wings;" in " ".join(capsys.readouterr().err.split())
    out = export(tmp_path / "ours", tmp_path / "out")
    assert read(out / "config.json") == was | {"architectures": ["LlamaForCausalLM"]}
    assert not (out / "generation_config.json").exists()
    other = export(tmp_path / "ours", tmp_path / "half", dtype="bfloat16")
    assert read(other / "config.json")["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "changes, key, word",
    [
        ({"rms_norm_eps": 1}, "config.json cannot", "rms_norm_eps"),  # found before the tokenizer, which reads it too
        ({"pad_token_id": V + 7}, f"pad_token_id = {V + 7}:", f"vocab_size = {V}"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, "rope_theta = 10000.0", "rope_parameters"),
        ({"eos_token_id": [2, True]}, "eos_token_id", "True"),
    ],
)
def test_a_config_that_does_not_fit_is_told_without_a_traceback(changes, key, word, theirs, tmp_path, capsys):
    said(theirs, **changes)
    names(fails(capsys, "import", theirs, tmp_path / "ours"), key, word)


def test_a_tokenizer_beside_a_config_that_cannot_be_read_is_told_with_its_fault(theirs, capsys):
    said(theirs, rms_norm_eps=1)
    with refuses(ValueError, "tokenizer", "rms_norm_eps"):
        load_tokenizer(str(theirs))


def test_an_adapter_beside_whole_weights_is_not_passed_over(theirs, tmp_path, capsys):
    """transformers puts it on them."""
    (theirs / "adapter_config.json").write_text("{}")
    names(fails(capsys, "import", theirs, tmp_path / "ours"), "adapter_config.json", "own")


# ---- classifiers of several labels


@pytest.fixture(scope="module")
def rater(weights, tmp_path_factory):
    """An imported classifier of the labels bad and good."""
    folder = shutil.copytree(weights, tmp_path_factory.mktemp("rater") / "theirs")
    tensors = load_file(folder / "model.safetensors")
    tensors["score.weight"] = hf_cases.weights("score.weight", (2, CASE["hidden_size"]))
    save_file({k: v for k, v in tensors.items() if k != "lm_head.weight"}, folder / "model.safetensors")
    said(folder, architectures=["LlamaForSequenceClassification"], id2label={"0": "bad", "1": "good"})
    assert main(["import", str(folder), str(folder.parent / "ours")]) == 0
    return folder.parent / "ours"


def _reward(rater, told):
    """The reward model of a stage whose reward_weights are `told`."""
    tokenizer = load_tokenizer(str(rater / "tokenizer"))
    mesh = sharding.make_mesh({"data": 1, "fsdp": 1}, jax.devices()[:1])
    plan = SimpleNamespace(compute={"dtype": "float32", "remat": "none", "attention": "auto"}, template="plain")
    stage = folders.Stage(online.STAGE, rater.parent, {}, plan, {"reward": rater}, {}, None, 0.0, {})
    return parents.load_reward(stage, "reward", told, tokenizer, mesh, key="reward_weights")


@pytest.mark.parametrize("told, missing", [({}, "'bad', 'good'"), ({"good": 1.0}, "'bad'")])
def test_labels_of_an_imported_classifier_need_a_weight_each(told, missing, rater):
    with refuses(ConfigError, "config.reward_weights", f"{missing}:", "each"):
        _reward(rater, told)


def test_its_score_is_the_weighted_sum_of_the_labels(rater):
    _, params = _reward(rater, {"good": 1.0, "bad": -0.5})
    head = load_params(rater / "params")["scalar"]["kernel"]  # [D A], in the order bad, good
    np.testing.assert_allclose(params["scalar"]["kernel"], head @ np.array([-0.5, 1.0], np.float32), rtol=1e-6)


# ---- an adapter's own tokenizer


@pytest.mark.parametrize(
    "brings, told",
    [((), ""), (("tokenizer",), ""), (("template",), "chat template"), (("tokenizer", "end"), "another tokenizer, ")],
)
def test_a_tokenizer_or_template_of_an_adapters_own_is_told(brings, told, tmp_path, capsys):
    used = build_tokenizer()
    if "tokenizer" in brings:
        own = build_tokenizer()
        own.eos_token = own.pad_token if "end" in brings else own.eos_token
        own.save_pretrained(tmp_path)
    elif "template" in brings:
        (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    say_own(tmp_path, used)
    err = " ".join(capsys.readouterr().err.split())
    assert told in err and bool(told) == ("--tokenizer=" in err)


# ---- lengths


def test_a_model_of_our_own_says_the_longest_text_that_it_was_trained_on(run, tmp_path):
    """SFT cut its texts at 48 tokens, PPO's prompts may have 24 and its replies 24: vLLM refuses 0."""
    lengths = {"sft": 48, "reward": 48, "ppo": 48, "dpo": 48}
    assert {name: read(run / name / "manifest.json")["longest_text"] for name in lengths} == lengths
    assert read(run / "collect/manifest.json")["longest_text"] is None
    out = export(run / "ppo", tmp_path / "out")
    assert read(out / "config.json")["max_position_embeddings"] == 48


def test_a_manifest_of_before_has_its_config_to_say_it(copy, tmp_path):
    file = copy / "sft/manifest.json"
    manifest = read(file)
    del manifest["longest_text"]
    file.write_text(json.dumps(manifest))
    assert read(export(copy / "sft", tmp_path / "out") / "config.json")["max_position_embeddings"] == 48
