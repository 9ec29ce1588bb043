"""Checkpoints that cannot be used as they are named: the folder and what differs, exit status 1."""

import json
import shutil

import pytest
from errors import names, refuses
from stage_runs import ROOT, fails, finished, read, tiny

from alignax.data.tokenizer import load_tokenizer
from alignax.manifest import CheckpointError
from alignax.stages import offline, sft

DPO = ROOT / "configs/world/dpo.py"


@pytest.fixture
def dpo(run, tmp_path, capsys):
    """Runs configs/world/dpo.py from a folder, which must fail; returns the message."""

    def attempt(init, *overrides):
        data = f"--config.data.path={run / 'collect'}"
        workdir = tmp_path / "dpo"
        return fails(
            capsys, "run", f"--config={DPO}", f"--workdir={workdir}", f"--config.init_from={init}", data, *overrides
        )

    return attempt


def edit(folder, **changes):
    """Changes entries of a manifest."""
    manifest = read(folder / "manifest.json") | changes
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_folder_that_is_missing_empty_or_half_written(dpo, copy, tmp_path):
    assert f"{tmp_path / 'nowhere'}" in dpo(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}" in dpo(tmp_path / "empty")
    (copy / "sft/manifest.json").unlink()
    assert "steps" in dpo(copy / "sft")
    assert not (tmp_path / "dpo").exists()  # nothing was begun


def test_a_parent_without_its_parameters(dpo, copy, tmp_path):
    shutil.rmtree(copy / "sft/params")
    names(dpo(copy / "sft"), "params/", "missing", "again")
    assert not (tmp_path / "dpo").exists()


def test_a_parent_of_another_stage(dpo, run):
    names(dpo(run / "reward"), "parent policy = 'reward'", "expected policy")


def test_another_architecture_names_what_differs(run, tmp_path):
    config = tiny().sft
    config.init_from, config.tokenizer, config.model_args.layers = str(run / "sft"), "", 3
    with refuses(CheckpointError, "architecture.layers", "2", "3"):
        sft.run(config, tmp_path / "sft")


def test_another_template_or_tokenizer_names_what_differs(dpo, copy):
    names(dpo(copy / "sft", "--config.template=plain"), "parent policy = 'sft'", "template_hash:")
    tokenizer = load_tokenizer(str(copy / "sft/tokenizer"))
    tokenizer.add_tokens(["anchor"])
    tokenizer.save_pretrained(str(copy / "sft/tokenizer"))
    names(dpo(copy / "sft"), "parent policy = 'sft'", "tokenizer_hash:")


def test_a_reward_model_of_another_tokenizer_does_not_score_the_policy(copy, capsys):
    """PPO's second parent is checked like the first."""
    edit(copy / "reward", tokenizer_hash="0" * 64)
    config = ROOT / "configs/world/ppo.py"
    values = [f"--config.init_from={copy / 'sft'}", f"--config.reward_from={copy / 'reward'}"]
    message = fails(capsys, "run", f"--config={config}", f"--workdir={copy.parent / 'ppo'}", *values)
    names(message, "parent reward = 'reward'", "tokenizer_hash:", "0" * 12)


@pytest.mark.parametrize("damage", ["garbage", "cut", "gone"])
def test_damaged_parameters_are_no_policy(dpo, copy, damage, capsys):
    files = [path for path in (copy / "sft/params").rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    assert files
    for path in files:
        content = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            path.write_bytes(b"x" * len(content) if damage == "garbage" else content[: len(content) // 2])
    names(dpo(copy / "sft"), f"{copy / 'sft/params'}: cannot", "again")
    fails(capsys, "sample", copy / "sft", "mara asks .")


def test_parameters_that_are_not_those_of_the_manifest(dpo, copy):
    """Another run's params/ copied over: same shapes, so that only the recorded hash tells."""
    shutil.rmtree(copy / "sft/params")
    shutil.copytree(copy / "ppo/params", copy / "sft/params")
    names(dpo(copy / "sft"), str(copy / "sft"), "changed")


@pytest.mark.slow  # of a pipeline's steps: test_pipeline
def test_a_parent_that_was_made_again_makes_its_children_again(copy):
    """A new content hash in a parent's manifest is reason enough, with the config as it was."""
    before = finished(copy)
    values = {"batch_size": 16, "total_steps": 1, "eval_every_steps": 0, "save_every_steps": 1}
    config = tiny().dpo
    for name, value in values.items():
        config[name] = value
    config.probe.source = config.probe.reward = config.probe.reward_from = ""
    del config.probe.data["count"], config.probe.data["world_split"]
    config.init_from, config.data.path = str(copy / "sft"), str(copy / "collect")
    offline.run(config, copy / "other")
    stamp = finished(copy)["other"]
    offline.run(config, copy / "other")
    assert finished(copy)["other"] == stamp
    edit(copy / "collect", content_hash="0" * 64)
    offline.run(config, copy / "other")
    assert finished(copy)["other"] != stamp
    assert {name: finished(copy)[name] for name in before if name != "collect"} == {
        name: time for name, time in before.items() if name != "collect"
    }


def test_sample_names_what_is_wrong(run, tmp_path, capsys):
    assert str(tmp_path) in fails(capsys, "sample", tmp_path, "hello")
    names(fails(capsys, "sample", run / "reward", "hello"), "reward", "expected policy")
    names(fails(capsys, "sample", run / "sft", "zeppelin"), "words", "tokenizer")
    names(fails(capsys, "sample", run / "sft", "mara", "--top-p", "0"), "top_p = 0.0", "expected")
    names(fails(capsys, "sample", run / "sft", "mara", "--n", "0"), "n = 0", "expected")


@pytest.mark.parametrize("command", ["lineage", "report"])
def test_a_folder_without_a_run(command, tmp_path, capsys):
    assert str(tmp_path / "nowhere") in fails(capsys, command, tmp_path / "nowhere")
    assert str(tmp_path) in fails(capsys, command, tmp_path)
