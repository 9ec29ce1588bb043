"""Distillation end to end: the losses, own samples, students of another size, resume, and what is refused."""

import logging
import re

import jax
import numpy as np
import pytest
from errors import refuses
from stage_runs import facts, file_config, metrics, read

from alignax import catalogue
from alignax.config import ConfigError, plain
from alignax.data.loader import Loader
from alignax.main import main
from alignax.manifest import CheckpointError
from alignax.stages import distill, pipeline, probe
from tests.marks import quick

LOSSES = [name for name in catalogue.names() if catalogue.objective(name).record == "Distill"]
TINIER = dict(dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=32)


def config(run, **values):
    """configs/world/distill.py made tiny: the SFT policy of the tiny pipeline learns from its PPO policy."""
    c = file_config("world/distill.py")
    c.init_from, c.teacher_from, c.probe = str(run / "sft"), str(run / "ppo"), probe.get_config()
    c.data, c.batch_size, c.max_new_tokens = dict(count=64, heldout=16), 16, 12
    c.total_steps, c.eval_every_steps, c.save_every_steps = 6, 0, 6
    for name, value in values.items():
        c[name] = value
    return c


@pytest.mark.parametrize("name", quick(LOSSES, "gkd"))
def test_a_distillation_loss_trains(run, tmp_path, name):
    first, second, *_ = metrics(distill.run(config(run, loss=name, on_policy=0.0), tmp_path / name))
    assert 0 < first["loss"] != second["loss"] and first["grad_norm"] > 0
    assert 0 < read(tmp_path / name / "manifest.json")["metrics"]["eval/loss"] < 1


@pytest.mark.parametrize("share", quick([0.0, 0.5, 1.0], 0.5))
def test_each_kind_of_step_is_compiled_once_and_only_if_it_comes(run, tmp_path, caplog, share):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        rows = metrics(distill.run(config(run, on_policy=share), tmp_path / "x"))
    own = [row["on_policy"] for row in rows]
    wanted = {0.0: {0.0}, 0.5: {0.0, 1.0}, 1.0: {1.0}}[share]
    assert set(own) == wanted
    built = re.findall(r"Compiling jit\(on_(given|own)\)", caplog.text)
    assert sorted(built) == sorted({0.0: "given", 1.0: "own"}[kind] for kind in wanted)
    for row in rows:
        assert np.isfinite(row["loss"])
        assert row["on_policy"] == ("completions/mean_length" in row)


@pytest.mark.slow  # its key: test_the_kind_of_a_step
def test_every_step_samples_anew(run, tmp_path):
    """A student that stands still, on the same 16 prompts in every step: only the noise differs."""
    still = config(run, on_policy=1.0, optimizer_args=dict(learning_rate=0.0), data=dict(count=16, heldout=16))
    rows = metrics(distill.run(still, tmp_path / "x"))
    assert np.diff(np.sort([row["teacher_entropy"] for row in rows])).min() > 1e-4  # far above rounding


def test_the_kind_of_a_step_follows_from_the_key_and_the_step_alone():
    key = jax.random.key(3)
    long = distill.on_policy_steps(key, 0.3, 2000)
    np.testing.assert_array_equal(distill.on_policy_steps(key, 0.3, 50), long[:50])
    assert abs(long.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)
    assert not distill.on_policy_steps(key, 0.0, 2000).any() and distill.on_policy_steps(key, 1.0, 2000).all()


@pytest.fixture(scope="module")
def student(run, tmp_path_factory):
    """A fresh student, smaller than its teacher, after 30 steps on nothing but its own samples, in microbatches."""
    c = config(run, init_from="", model="harbor", model_args=TINIER, teacher_from=str(run / "sft"), loss="forward_kl")
    c.on_policy = 1.0
    c.total_steps, c.save_every_steps, c.eval_every_steps, c.microbatches = 30, 30, 30, 2
    c.optimizer_args.learning_rate = 2e-2
    c.probe = file_config("world/distill.py").probe
    c.probe.data.count = c.probe.batch_size = c.probe.max_new_tokens = 8
    return distill.run(c, tmp_path_factory.mktemp("runs") / "student")


@pytest.mark.slow
def test_the_kl_of_a_smaller_student_to_its_teacher_falls_on_held_out_data(student):
    before, after = metrics(student, "eval")
    assert after["eval/loss"] < 0.7 * before["eval/loss"]  # forward KL, nats per token
    assert "eval/gold_reward" in after and "eval/kl" not in after  # a fresh student has no start to be near to


def test_a_student_knows_its_teacher_and_is_a_policy_like_others(student, run, tmp_path, capsys):
    manifest = read(student / "manifest.json")
    assert list(manifest["parents"]) == ["teacher"] and manifest["architecture"]["dim"] == TINIER["dim"]
    assert main(["sample", str(student), "mara asks : how to open the jar .", "--max-new-tokens", "4"]) == 0
    assert main(["lineage", str(student)]) == 0
    tree = capsys.readouterr().out
    assert re.search(r"student  distill  step 30", tree) and "── teacher: sft  sft" in tree
    assert main(["report", str(student)]) == 0
    page = (student / "report.html").read_text()
    assert "agreement with the teacher" in page and "gold reward over the steps" in page


@pytest.mark.slow  # stopped runs of every stage: test_kill_resume
def test_a_killed_pipeline_equals_the_uninterrupted_one_and_a_student_of_itself_stays(run, tmp_path, monkeypatch):
    """Both kinds of step; then the student as the teacher of itself, at which it has nothing to learn."""
    first = plain(config(run, save_every_steps=2))
    itself = first | dict(init_from="@first", teacher_from="@first", on_policy=1.0)
    steps = {"steps": ["first", "itself"], "first": first, "itself": itself}
    whole = pipeline.run(steps, tmp_path / "whole")
    assert {row["on_policy"] for row in metrics(whole / "first")} == {0.0, 1.0}

    batch = Loader.batch
    with monkeypatch.context() as patch:
        patch.setattr(Loader, "batch", lambda self, step: batch(self, step) if step != 3 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.run(steps, tmp_path / "killed")
    assert [row["step"] for row in metrics(tmp_path / "killed/first")] in ([1, 2], [1, 2, 3])
    killed = pipeline.run(steps, tmp_path / "killed")
    assert facts(killed) == facts(whole)

    row = metrics(whole / "itself")[0]
    assert abs(row["loss"]) < 1e-6 and row["grad_norm"] < 1e-5 and row["agreement"] == 1
    assert list(read(whole / "itself/manifest.json")["parents"]) == ["policy", "teacher"]


@pytest.mark.parametrize(
    "values, key, word",
    [
        (dict(on_policy=1.5), "config.on_policy = 1.5:", "share"),
        (dict(on_policy=-0.1), "config.on_policy = -0.1:", "share"),
        (dict(teacher_from=""), "config.teacher_from = ''", "folder"),
        (dict(init_from=""), "config.model is empty", "config.init_from"),
        (dict(temperature=-1.0), "config.temperature = -1.0:", "greedy"),
        (dict(max_new_tokens=0), "config.max_new_tokens = 0:", "1"),
        (dict(loss="sft"), "config.loss: sft takes a Demo", "Distill"),
        (dict(loss_args=dict(beat=0.1)), "config.loss_args.beat:", "'beta'"),
    ],
)
def test_what_cannot_be_is_refused_first(run, tmp_path, monkeypatch, values, key, word):
    monkeypatch.setattr("alignax.stages.inputs.load_rows", lambda *args, **kwargs: pytest.fail("rows were loaded"))
    with refuses(ConfigError, key, word):
        distill.run(config(run, **values), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "values, key, word",
    [
        (dict(teacher_from="reward"), "parent teacher = 'reward'", "expected policy"),
        (dict(template="plain"), "parent policy = 'sft'", "template_hash:"),
        (dict(model="harbor", model_args=TINIER), "parent policy = 'sft'", "architecture.dim: parent 32, config 16"),
    ],
)
def test_a_parent_that_does_not_fit_is_named(run, tmp_path, values, key, word):
    if "teacher_from" in values:
        values = dict(teacher_from=str(run / values["teacher_from"]))
    with refuses(CheckpointError, key, word):
        distill.run(config(run, **values), tmp_path / "x")


def test_a_teacher_of_another_tokenizer_is_refused(copy, tmp_path):
    path = copy / "ppo/manifest.json"
    path.write_text(path.read_text().replace(read(path)["tokenizer_hash"], "0" * 64))
    with refuses(CheckpointError, "parent teacher = 'ppo'", "tokenizer_hash:", "0" * 12):
        distill.run(config(copy), tmp_path / "x")
