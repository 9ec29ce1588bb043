"""A checkpoint of Hugging Face's format comes in, is trained, and goes out again."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from errors import names, refuses
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

import hf_cases
import hf_runs

from alignax.checkpoint import load_params, verify
from alignax.config import ConfigError
from alignax.data.templates import stop_ids
from alignax.data.tokenizer import load_tokenizer, vocabulary
from alignax.interop.classifier import scoring_pad
from alignax.interop.ends import generation_ends
from alignax.interop.export import export
from alignax.main import main
from alignax.manifest import CheckpointError, read_manifest
from alignax.stages import imported, sft
from alignax.stages.playground import complete
from alignax.worlds.tokenizer import build_tokenizer

V = len(build_tokenizer())
CASE = hf_cases.CASES["qwen2"] | {"vocab_size": V + 3, "bos_token_id": None, "eos_token_id": 1}


def write(folder, case, **changes):
    """A checkpoint of a case with the tokenizer of the world."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(hf_cases.CASES, "world", case | changes)
        hf_runs.write("world", folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A Qwen 2 with the tokenizer of the world, as transformers would save it."""
    folder = write(tmp_path_factory.mktemp("hub") / "tiny-qwen", CASE)
    (folder / "generation_config.json").write_text('{"temperature": 0.7, "eos_token_id": [1, 2]}')
    return folder


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    """The imported policy."""
    out = tmp_path_factory.mktemp("runs") / "tiny-qwen"
    assert main(["import", str(theirs), str(out)]) == 0
    return out


def test_an_import_is_a_checkpoint_of_the_tokenizers_vocabulary(ours, theirs):
    manifest = verify(ours)
    assert (manifest["stage"], manifest["architecture"]["vocab_size"]) == ("imported", V)
    assert manifest["architecture"]["vocab_rows"] == V + 3
    embed = load_params(ours / "params")["decoder"]["embed"]
    want = load_file(theirs / "model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(embed[: V + 3], want)
    assert not embed[V + 3 :].any()


def test_the_tokenizer_is_that_of_the_file_whatever_the_config_says(ours, theirs, tmp_path, capsys):
    """transformers' own loading makes a Qwen tokenizer of the folder, since its config says qwen2."""
    text = "mara asks : the harbor cafe has tea ."
    for folder in (theirs, ours / "tokenizer"):
        assert load_tokenizer(str(folder))(text)["input_ids"] == build_tokenizer()(text)["input_ids"]
    export(ours, tmp_path / "out")
    assert "AutoTokenizer makes another tokenizer (Qwen2Tokenizer)" in capsys.readouterr().err.replace("\n", " ")


def test_importing_again_does_nothing(ours, theirs, capsys):
    before = (ours / "manifest.json").stat().st_mtime_ns
    assert main(["import", str(theirs), str(ours)]) == 0
    assert (ours / "manifest.json").stat().st_mtime_ns == before


def test_a_folder_that_has_changed_since_is_no_finished_import(theirs, tmp_path):
    folder = shutil.copytree(theirs, tmp_path / "theirs")
    assert main(["import", str(folder), str(tmp_path / "ours")]) == 0
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] + 1}, folder / "model.safetensors")
    c = imported.get_config()
    c.path = str(folder)
    with refuses(CheckpointError, "changed", "delete"):
        imported.run(c, tmp_path / "ours")


def test_a_config_without_a_dtype_gets_that_of_the_tensors(theirs, tmp_path):
    folder = shutil.copytree(theirs, tmp_path / "theirs")
    tensors = load_file(folder / "model.safetensors")
    half = {name: x.astype(jax.numpy.bfloat16) for name, x in tensors.items()}
    save_file(half, folder / "model.safetensors")
    assert "dtype" not in json.loads((folder / "config.json").read_text())
    assert main(["import", str(folder), str(tmp_path / "ours")]) == 0
    back = load_file(export(tmp_path / "ours", tmp_path / "out") / "model.safetensors")
    assert all(back[name].tobytes() == x.tobytes() for name, x in half.items())


def test_every_tensor_keeps_its_own_dtype_whatever_the_config_says(theirs, tmp_path):
    folder = shutil.copytree(theirs, tmp_path / "theirs")
    (folder / "config.json").write_text(json.dumps(CASE | {"dtype": "bfloat16"}))
    mixed = {
        name: x.astype(jax.numpy.bfloat16) if "proj" in name else x
        for name, x in load_file(folder / "model.safetensors").items()
    }
    save_file(mixed, folder / "model.safetensors")
    assert main(["import", str(folder), str(tmp_path / "ours")]) == 0
    out = export(tmp_path / "ours", tmp_path / "out")
    back = load_file(out / "model.safetensors")
    assert all(back[name].dtype == x.dtype and back[name].tobytes() == x.tobytes() for name, x in mixed.items())
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    other = load_file(export(tmp_path / "ours", tmp_path / "half", dtype="float16") / "model.safetensors")
    assert {str(x.dtype) for x in other.values()} == {"float16"}


def test_tensors_of_a_bare_decoder_keep_their_dtypes_under_the_names_of_the_whole_model(theirs, tmp_path):
    folder = shutil.copytree(theirs, tmp_path / "theirs")
    tensors = {name: x.astype(jax.numpy.bfloat16) for name, x in load_file(folder / "model.safetensors").items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32) + 1e-6
    save_file({n.removeprefix("model."): x for n, x in tensors.items()}, folder / "model.safetensors")
    assert main(["import", str(folder), str(tmp_path / "ours")]) == 0
    back = load_file(export(tmp_path / "ours", tmp_path / "out") / "model.safetensors")
    assert {n: x.tobytes() for n, x in back.items()} == {n: x.tobytes() for n, x in tensors.items()}


def test_another_family_is_told_the_tokenizers_own_ids(tmp_path):
    folder = write(tmp_path / "theirs", hf_cases.CASES["llama"], vocab_size=V, bos_token_id=5, eos_token_id=7)
    assert main(["import", str(folder), str(tmp_path / "ours")]) == 0
    config = json.loads((export(tmp_path / "ours", tmp_path / "out", family="mistral") / "config.json").read_text())
    tokenizer = build_tokenizer()
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    assert [config[name] for name in ids] == [getattr(tokenizer, name) for name in ids]


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "2"}'])
def test_a_damaged_generation_config_is_named(content, theirs, tmp_path, capsys):
    folder = shutil.copytree(theirs, tmp_path / "theirs")
    (folder / "generation_config.json").write_text(content)
    assert main(["import", str(folder), str(tmp_path / "ours")]) == 1
    assert "generation_config.json" in capsys.readouterr().err


def test_ids_beyond_the_number_of_tokens_are_ids_of_the_vocabulary(tmp_path):
    file = json.loads(build_tokenizer().backend_tokenizer.to_str())
    vocab = file["model"]["vocab"]
    last = max(vocab, key=vocab.get)
    file["model"]["vocab"] = {name: V + 2 if name == last else i for name, i in vocab.items()}
    build_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    tokenizer = load_tokenizer(str(tmp_path))
    assert (len(tokenizer), vocabulary(tokenizer)) == (V, V + 3)
    tokenizer.save_pretrained(tmp_path / "again")
    assert "is_local" not in (tmp_path / "again/tokenizer_config.json").read_text()


def test_texts_longer_than_learned_positions_are_refused_before_a_step(tmp_path):
    folder = write(tmp_path / "theirs", hf_cases.CASES["gpt2"], vocab_size=V)
    assert main(["import", str(folder), str(tmp_path / "ours")]) == 0
    c = sft.get_config()
    c.init_from, c.source, c.max_length = str(tmp_path / "ours"), "alignax.worlds.sources:demonstrations", 48
    c.data.count, c.data.heldout = 32, 8
    with refuses(ConfigError, "config.max_length = 48", "learned", "32"):
        sft.run(c, tmp_path / "sft")
    assert not (tmp_path / "sft/steps").exists()
    with refuses(ConfigError, "tokens", "32"):
        complete(tmp_path / "ours", ["mara asks"], max_new_tokens=40)


def test_what_ends_a_reply_in_training_ends_one_in_generate(theirs, tmp_path):
    folder = shutil.copytree(theirs, tmp_path / "theirs")
    (folder / "generation_config.json").write_text('{"temperature": 0.7, "eos_token_id": 9}')
    assert main(["import", str(folder), str(tmp_path / "ours")]) == 0
    told = json.loads((export(tmp_path / "ours", tmp_path / "out") / "generation_config.json").read_text())
    assert told == {"temperature": 0.7, "eos_token_id": sorted({9, *stop_ids(build_tokenizer(), "chat")})}


def test_the_sampler_stops_at_every_end_that_generation_config_names(ours, theirs, tmp_path):
    tokenizer = load_tokenizer(str(ours / "tokenizer"))
    assert stop_ids(tokenizer, "plain") == {1, 2} and 1 not in stop_ids(build_tokenizer(), "plain")
    assert stop_ids(tokenizer, "chat") == {1} | stop_ids(build_tokenizer(), "chat")
    export(ours, tmp_path / "out")
    assert "stop_ids" not in (tmp_path / "out/tokenizer_config.json").read_text()
    assert generation_ends(tmp_path, [4]) == [4]  # without a file, config.json's own
    (tmp_path / "generation_config.json").write_text("{}")
    assert generation_ends(tmp_path, [4]) == []


def test_an_export_of_an_import_changes_nothing(ours, theirs, tmp_path):
    assert main(["export", str(ours), str(tmp_path / "out")]) == 0
    for name in ("model.safetensors", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (theirs / name).read_bytes(), name
    was, now = (json.loads((folder / "config.json").read_text()) for folder in (theirs, tmp_path / "out"))
    assert {name: now[name] for name in was} == was and now["architectures"] == ["Qwen2ForCausalLM"]


def test_what_was_trained_from_an_import_goes_out_with_its_config(ours, tmp_path):
    c = sft.get_config()
    c.init_from, c.source, c.max_length = str(ours), "alignax.worlds.sources:demonstrations", 48
    c.data.count, c.data.heldout = 32, 8
    c.batch_size, c.total_steps, c.eval_every_steps, c.save_every_steps = 8, 2, 0, 2
    c.optimizer_args.learning_rate = 1e-2
    trained = sft.run(c, tmp_path / "sft")
    assert read_manifest(trained)["parents"]["policy"]["content_hash"] == read_manifest(ours)["content_hash"]
    out = export(trained, tmp_path / "out")
    assert (out / "generation_config.json").read_bytes() == (ours / "hf/generation_config.json").read_bytes()
    again = imported.get_config()
    again.path = str(out)
    folder = imported.run(again, tmp_path / "again")
    one, other = (load_params(x / "params") for x in (trained, folder))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(load_params(ours / "params")))]
    assert min(moved) > 0  # every array was trained


def test_a_model_of_our_own_goes_out_as_the_first_family_that_fits(run, tmp_path):
    out = export(run / "sft", tmp_path / "out", dtype="bfloat16")
    config = json.loads((out / "config.json").read_text())
    tokenizer = build_tokenizer()
    assert (config["model_type"], config["dtype"], config["vocab_size"]) == ("llama", "bfloat16", V)
    assert (config["eos_token_id"], config["pad_token_id"]) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert {str(x.dtype) for x in load_file(out / "model.safetensors").values()} == {"bfloat16"}


def test_a_reward_model_goes_out_and_comes_back_as_one(run, tmp_path):
    out = export(run / "reward", tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    bias = load_params(run / "reward/params")["scalar"]["bias"]
    assert bias and config["score_bias"] == float(bias)  # the class has none; rounding has moved it from 0
    c = imported.get_config()
    c.path = str(out)
    back = imported.run(c, tmp_path / "back")
    assert read_manifest(back)["makes"] == "reward"
    one, other = (load_params(x / "params") for x in (run / "reward", back))
    for tree in (one, other):  # what pads the table does not travel
        tree["decoder"]["embed"] = tree["decoder"]["embed"][:V]
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_reward_model_pads_with_what_ends_no_text_or_takes_one_at_a_time(capsys):
    tokenizer = build_tokenizer()
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    assert pad != end and scoring_pad(tokenizer, [end]) == pad
    assert scoring_pad(tokenizer, [end, pad]) is None
    tokenizer.pad_token = None
    assert scoring_pad(tokenizer, [end]) is None
    assert " ".join(capsys.readouterr().err.split()).count("scores one text at a time") == 2


@pytest.mark.parametrize(
    "argv, key, word",
    [
        (["import", "./nowhere", "out"], "config.path = './nowhere'", "folder"),
        (["export", "{ours}", "{ours}"], "there already", "new"),
        (["export", "{ours}", "out", "--dtype", "int8"], "dtype = 'int8'", "float32, bfloat16, float16"),
        (["export", "{ours}", "out", "--family", "bert"], "family = 'bert'", "llama, mistral"),
        (["export", "{ours}", "out", "--family", "gemma"], "gemma", "qkv_bias = True"),
        (["export", "{run}/collect", "out"], "'collect'", "parameters"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_sentence(argv, key, word, ours, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([x.format(ours=ours, run=run) for x in argv]) == 1
    names(capsys.readouterr().err, key, word)
    assert not Path("out").exists()


def test_a_tokenizer_larger_than_the_embedding_is_refused_before_anything_is_written(theirs, tmp_path):
    folder = shutil.copytree(theirs, tmp_path / "small")
    (folder / "config.json").write_text(json.dumps(CASE | {"vocab_size": V - 1}))
    c = imported.get_config()
    c.path = str(folder)
    with refuses(ValueError, f"{V} tokens", f"{V - 1} rows"):
        imported.run(c, tmp_path / "out")
    assert not (tmp_path / "out/params").exists()


def test_a_head_of_another_width_is_told_with_the_other_tensors(run, tmp_path):
    out = export(run / "reward", tmp_path / "out")
    tensors = load_file(out / "model.safetensors")
    tensors["score.weight"] = np.zeros((2, 16), np.float32)
    save_file(tensors, out / "model.safetensors")
    c = imported.get_config()
    c.path = str(out)
    with refuses(ValueError, "score.weight (2, 16)", "(1,"):
        imported.run(c, tmp_path / "in")


def test_a_step_of_a_pipeline_may_be_an_import(theirs):
    from alignax.stages.plans import made

    c = imported.get_config()
    with refuses(ConfigError, "config.path", "empty"):
        made(c.to_dict())
    c.path = str(theirs)
    made(c.to_dict())
