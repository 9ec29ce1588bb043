"""Stages that train an adapter on a frozen decoder, and what reads one."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from stage_runs import metrics, read, tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from alignax.checkpoint import load_params
from alignax.config import ConfigError, plain
from alignax.interop.export import export, export_adapter
from alignax.lora import merge
from alignax.main import main
from alignax.manifest import CheckpointError
from alignax.stages import imported, offline, parents, probe, reward, sft
from alignax.stages.plans import made

RANK = 2


def config(run, step, **values):
    c = plain(tiny()[step]) | dict(total_steps=2, eval_every_steps=0, save_every_steps=1)
    c |= dict(init_from=str(run / "sft"), lora_args={"rank": RANK}) | values
    if step == "sft":
        c |= dict(model="", model_args={}, tokenizer="")
    else:
        c["data"] = c["data"] | {"path": str(run / "collect")}
    return c | (dict(probe=plain(probe.get_config())) if "probe" in c else {})


@pytest.fixture(scope="module")
def tuned(run, tmp_path_factory):
    """SFT by an adapter on the finished SFT policy."""
    return sft.run(config(run, "sft"), tmp_path_factory.mktemp("adapters") / "sft")


def test_a_checkpoint_holds_the_adapter_and_knows_its_base(run, tuned):
    params, manifest = load_params(tuned / "params"), read(tuned / "manifest.json")
    assert set(params) == {"lora"} and params["lora"]["layers"]["q"]["a"].shape[-1] == RANK
    assert manifest["base"]["content_hash"] == read(run / "sft/manifest.json")["content_hash"]
    moved = [np.abs(one["b"]).max() for one in params["lora"]["layers"].values()]
    assert min(moved) > 0  # every adapter was trained from zero
    assert all((one["scale"] == 2.0).all() for one in params["lora"]["layers"].values())
    assert all(np.isfinite(row["loss"]) for row in metrics(tuned))


def test_the_first_loss_is_that_of_the_base_whatever_is_trained(run, tuned, tmp_path):
    whole = sft.run(config(run, "sft", lora_args={}), tmp_path / "whole")
    first = [metrics(folder)[0]["loss"] for folder in (tuned, whole)]
    assert first[0] == pytest.approx(first[1], abs=1e-6)


def test_preferences_start_at_the_adapted_policy_as_the_reference(tuned, run, tmp_path):
    folder = offline.run(config(run, "dpo", init_from=str(tuned)), tmp_path / "dpo")
    assert metrics(folder)[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    manifest = read(folder / "manifest.json")
    assert manifest["base"]["content_hash"] == read(run / "sft/manifest.json")["content_hash"]  # not the adapter's
    one, other = (load_params(x / "params")["lora"]["layers"]["q"] for x in (tuned, folder))
    assert np.abs(one["a"] - other["a"]).max() > 0  # it went on from the same adapter
    assert np.abs(one["a"] - other["a"]).max() < 0.1 * np.abs(one["a"]).max()


@pytest.fixture(scope="module")
def rated(run, tmp_path_factory):
    """A reward model by an adapter and a head on the finished SFT policy."""
    return reward.run(config(run, "reward"), tmp_path_factory.mktemp("adapters") / "reward")


def test_a_reward_model_is_an_adapter_and_a_head(rated):
    assert set(load_params(rated / "params")) == {"lora", "scalar"}
    manifest = read(rated / "manifest.json")
    _, params = parents.whole(rated, manifest)
    assert set(params) == {"decoder", "scalar"} and np.isfinite(manifest["calibration"]["sd"])


def test_an_export_has_the_adapter_worked_in(run, tuned, tmp_path):
    tensors = load_file(export(tuned, tmp_path / "out") / "model.safetensors")
    base = load_params(run / "sft/params") | load_params(tuned / "params")
    want = jax.device_get(merge(jax.tree.map(jnp.asarray, base)))["decoder"]["layers"]["q"]["kernel"]
    np.testing.assert_allclose(tensors["model.layers.0.self_attn.q_proj.weight"].T, want[0], atol=1e-6)


def test_all_parameters_may_be_trained_from_an_adapter(run, tuned, tmp_path):
    folder = sft.run(config(run, "sft", init_from=str(tuned), lora_args={}), tmp_path / "whole")
    assert set(load_params(folder / "params")) == {"decoder"} and read(folder / "manifest.json")["base"] is None


def test_an_adapter_for_another_base_is_refused(copy, tmp_path):
    folder = sft.run(config(copy, "sft"), tmp_path / "sft")
    file = copy / "sft/manifest.json"
    file.write_text(json.dumps(read(file) | {"content_hash": "0" * 64}))
    with refuses(CheckpointError, "content", "bring back"):
        parents.whole(folder, read(folder / "manifest.json"))


def test_an_adapter_of_another_shape_is_refused(run, tuned, tmp_path):
    with refuses(ConfigError, "parent", "another shape"):
        sft.run(config(run, "sft", init_from=str(tuned), lora_args={"rank": RANK + 1}), tmp_path / "sft")
    with refuses(ConfigError, "scale is 5", "alpha"):
        sft.run(config(run, "sft", init_from=str(tuned), lora_args={"rank": RANK, "alpha": 5.0 * RANK}), tmp_path / "a")


@pytest.mark.parametrize(
    "step, values, key, word",
    [
        ("sft", {"init_from": "", "model": "harbor", "tokenizer": "a:b"}, "lora_args is set", "config.init_from"),
        ("sft", {"lora_args": {"rnk": 4}}, "config.lora_args.rnk:", "'rank'"),
        ("dpo", {"reference_args": {"every": 2}}, "adapters", "mixture"),
    ],
)
def test_settings_that_cannot_be(run, step, values, key, word):
    with refuses(ConfigError, key, word):
        made(config(run, step) | values)


@pytest.fixture(scope="module")
def given(tuned, tmp_path_factory):
    """The adapter as a folder of peft's format."""
    out = tmp_path_factory.mktemp("peft") / "adapter"
    assert main(["export", str(tuned), str(out), "--adapter"]) == 0
    return out


@pytest.fixture
def foreign(given, tmp_path):
    """The same as peft would save it: without a word about its base in the header."""
    folder = shutil.copytree(given, tmp_path / "foreign")
    save_file(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def _brought(source, out, **values):
    c = imported.get_config()
    c.path = str(source)
    return imported.run(plain(c) | values, out)


def test_an_adapter_goes_out_and_comes_back_bit_for_bit_and_goes_on(run, tuned, given, tmp_path, capsys):
    assert main(["import", str(given), str(tmp_path / "back"), f"--base={run / 'sft'}"]) == 0
    back, settings = (
        tmp_path / "back",
        "{'rank': 2, 'alpha': 4.0, 'targets': '^(down|gate|k|o|q|up|v)$', 'rslora': False",
    )
    assert settings in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, *(load_params(x / "params") for x in (back, tuned)))
    manifest = read(back / "manifest.json")
    assert manifest["base"]["content_hash"] == read(run / "sft/manifest.json")["content_hash"]
    again = export_adapter(back, tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        one, other = (_contents(folder / name) for folder in (again, given))
        assert one == other, name
    folder = offline.run(config(run, "dpo", init_from=str(back)), tmp_path / "dpo")
    assert metrics(folder)[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert read(folder / "manifest.json")["parents"]["policy"]["content_hash"] == manifest["content_hash"]


def _contents(file):
    if file.suffix == ".json":
        return read(file)
    with safe_open(file, "numpy") as opened:
        return {name: opened.get_tensor(name).tobytes() for name in opened.keys()} | opened.metadata()  # noqa: SIM118


def test_an_import_is_done_once_and_again_if_its_base_is_another(run, given, copy, tmp_path):
    out = _brought(given, tmp_path / "back", base=str(run / "sft"))
    before = (out / "manifest.json").stat().st_mtime_ns
    _brought(given, tmp_path / "back", base=str(run / "sft"))
    assert (out / "manifest.json").stat().st_mtime_ns == before
    file = copy / "sft/manifest.json"
    file.write_text(json.dumps(read(file) | {"content_hash": "0" * 64}))
    with refuses(ConfigError, "config.base = ", "000000000000"):
        _brought(given, tmp_path / "back", base=str(copy / "sft"))
    _brought(given, tmp_path / "back", base=str(copy / "sft"), trust_base=True)
    assert read(out / "manifest.json")["base"]["content_hash"] == "0" * 64


def test_a_foreign_adapter_is_known_by_the_name_of_its_base(run, foreign, tmp_path):
    file = foreign / "adapter_config.json"
    for number, name in enumerate(("", None, "someone/SFT")):
        file.write_text(json.dumps(read(file) | {"base_model_name_or_path": name}))
        _brought(foreign, tmp_path / str(number), base=str(run / "sft"))
    file.write_text(json.dumps(read(file) | {"base_model_name_or_path": "someone/else"}))
    with refuses(ConfigError, "'someone/else'", "'sft'", "--trust-base"):
        _brought(foreign, tmp_path / "out", base=str(run / "sft"))
    _brought(foreign, tmp_path / "out", base=str(run / "sft"), trust_base=True)


def test_a_reward_adapter_goes_out_and_comes_back_with_its_head(run, rated, tmp_path):
    out = export_adapter(rated, tmp_path / "out", base_name="a/name")
    told = read(out / "adapter_config.json")
    assert (told["task_type"], told["modules_to_save"], told["base_model_name_or_path"]) == (
        "SEQ_CLS",
        ["score"],
        "a/name",
    )
    assert load_file(out / "adapter_model.safetensors")["base_model.model.score.weight"].shape == (1, 32)
    back = _brought(out, tmp_path / "back", base=str(run / "sft"))
    assert read(back / "manifest.json")["makes"] == "reward"
    jax.tree.map(np.testing.assert_array_equal, *(load_params(x / "params") for x in (back, rated)))
    one, other = (parents.whole(x, read(x / "manifest.json"))[1] for x in (back, rated))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["import", "{given}", "out"], "is an adapter: name the checkpoint that it stands on (--base=CHECKPOINT)"),
        (["import", "{given}", "out", "--base={given}"], "not the folder of a stage (no manifest.json)"),
        (
            ["import", "{given}", "out", "--base={hf}"],
            "a checkpoint of Hugging Face's format: import it first (alignax",
        ),
        (["import", "{given}", "out", "--base={tuned}"], "is an adapter itself: name the checkpoint that it stands on"),
        (["import", "{given}", "out", "--base={run}/reward"], "the stage reward makes: reward, expected policy"),
        (["import", "{given}", "out", "--trust-base"], "config.trust_base is set, but config.base is empty"),
        (
            ["import", "{given}", "out", "--base={run}/sft", "--tokenizer={word}"],
            "config.tokenizer has 1 tokens, the base",
        ),
        (
            ["export", "{run}/sft", "out", "--adapter"],
            "holds whole parameters and no adapter: export it without --adapter",
        ),
        (["export", "{tuned}", "out", "--adapter", "--family=gemma"], "no gemma model: norm = 'rms' would become"),
        (["export", "{tuned}", "out", "--base-name=x"], "--base-name=x: a merged export has no base; add --adapter"),
    ],
)
def test_what_cannot_be_done_with_an_adapter_is_told(argv, message, run, tuned, given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    hf = tmp_path / "hf"
    hf.mkdir()
    (hf / "config.json").write_text("{}")
    word = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    word.save_pretrained(tmp_path / "word")
    names = dict(run=run, tuned=tuned, given=given, hf=hf, word=tmp_path / "word")
    assert main([x.format(**names) for x in argv]) == 1
    assert message in capsys.readouterr().err and not Path("out/manifest.json").exists()
