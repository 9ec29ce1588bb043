"""experiments/quickstart/run.py on made-up summaries: figures by hand, files, and the place in the README."""

import json
import sys
from pathlib import Path

import pytest

from alignax.report import experiment
from alignax.report.experiment import END, cell, write_into
from experiments import ROOT, load

GOLD = {"sft": (0.0, 0.1, 0.2), "ppo": (1.0, 1.1, 1.2), "dpo": (0.2, 0.7, 1.2)}  # by policy and seed


@pytest.fixture(scope="module")
def run():
    return load("quickstart")


def summary(seed: int) -> dict:
    stages = {
        name: {"gold_reward": gold[seed], "gold_reward_ci95": [gold[seed] - 0.15, gold[seed] + 0.15],
               "proxy_reward": 2 * gold[seed], "kl": 0.0 if name == "sft" else 5.0, "length": 20.0}
        for name, gold in GOLD.items()
    }  # fmt: skip
    return {"stages": stages, "reward": {"heldout_accuracy": 0.7 + 0.01 * seed}, "wall_seconds": 300 + seed}


def finished_run(run, folder: Path, seed: int) -> Path:
    """A folder as a finished run of this seed leaves it."""
    config = run.config_of(seed)
    for name in config["steps"]:
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").write_text(json.dumps({"config": config[name]}))
    (folder / "summary.json").write_text(json.dumps(summary(seed)))
    return folder


@pytest.fixture
def runs(run, tmp_path, monkeypatch):
    """Three finished runs; a command to run anything fails the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for seed in range(3):
        finished_run(run, tmp_path / "runs" / f"quickstart-seed{seed}", seed)

    def refuse(command, **_):
        raise AssertionError(f"would have run {command}")

    monkeypatch.setattr(experiment.subprocess, "run", refuse)
    return tmp_path / "runs"


def test_figures_are_means_and_t_intervals_over_seeds(run):
    found = run.collect({seed: summary(seed) for seed in range(3)})["table"]
    # sd of (0, .1, .2) is .1; half-width = t(.975, 2) * .1 / sqrt(3) = 4.303 * .057735 = .24843
    assert found["sft"]["gold_reward"]["mean"] == pytest.approx(0.1)
    assert found["sft"]["gold_reward"]["ci95"] == pytest.approx([0.1 - 0.24843, 0.1 + 0.24843], abs=1e-4)
    assert found["ppo"]["proxy_reward"]["mean"] == pytest.approx(2.2)
    assert found["reward"]["heldout_accuracy"]["mean"] == pytest.approx(0.71)
    assert found["wall_seconds"]["mean"] == pytest.approx(301)


def test_apart_needs_the_whole_interval_above_that_of_sft(run):
    apart = run.collect({seed: summary(seed) for seed in range(3)})["apart"]
    # PPO: [.852, 1.348] above [-.148, .348], and in each seed 1.0 - .15 > 0.0 + .15.
    # DPO: .7 +- 1.242 reaches below; over prompts .2 - .15 < .15, then .55 > .25 and 1.05 > .35
    assert apart == {
        "ppo": {"over_seeds": True, "seeds_over_prompts": 3, "gain": True},
        "dpo": {"over_seeds": False, "seeds_over_prompts": 2, "gain": False},
    }


def test_the_gain_is_paired_by_seed(run):
    table = run.collect({seed: summary(seed) for seed in range(3)})["table"]
    # PPO: 1, 1, 1, no spread. DPO: .2, .6, 1: sd .4, half-width 4.303 * .4 / sqrt(3) = .99372
    assert table["ppo"]["gold_gain"]["ci95"] == pytest.approx([1.0, 1.0])
    assert table["dpo"]["gold_gain"]["mean"] == pytest.approx(0.6)
    assert table["dpo"]["gold_gain"]["ci95"] == pytest.approx([0.6 - 0.99372, 0.6 + 0.99372], abs=1e-4)
    assert "gold_gain" not in table["sft"]


def test_finished_seeds_are_collected_without_running_and_written(run, runs, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{run.BEGIN}\nold figures\n{END}\nafter\n")
    options = [f"--runs={runs}", f"--out={tmp_path / 'out'}", f"--readme={readme}"]
    run.main([*options, "--write-readme"])
    text = (tmp_path / "out/results.md").read_text()
    assert "| PPO | 1.10 [0.85, 1.35] | 2.20 [1.70, 2.70] | 5.00 [5.00, 5.00] | 20.0" in text.replace("20.00", "20.0")
    assert (
        "- PPO above SFT in gold reward, 95% intervals apart: yes over seeds; over prompts in 3 of 3 seeds. Gain"
        in text
    )
    assert (
        "- DPO above SFT in gold reward, 95% intervals apart: no over seeds; over prompts in 2 of 3 seeds. Gain" in text
    )
    assert "of the same seed: 1.00 [1.00, 1.00], above 0." in text
    assert "of the same seed: 0.60 [-0.39, 1.59], not shown to be above 0." in text
    assert "reward model: 0.710 [0.685, 0.735]" in text
    assert readme.read_text() == f"before\n{run.BEGIN}\n{text}{END}\nafter\n"
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["seeds"] == [0, 1, 2] and found["per_seed"]["2"] == summary(2)
    assert {"python", "jax", "alignax", "config_hash", "command"} <= set(found)
    assert str(tmp_path) not in json.dumps(found) and str(ROOT) not in json.dumps(found)
    assert run.markdown(found) == text
    assert "PPO" in capsys.readouterr().out


def test_readme_is_left_alone_unless_asked(run, runs, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing marked")
    run.main([f"--runs={runs}", f"--out={tmp_path / 'out'}", f"--readme={readme}"])
    assert readme.read_text() == "nothing marked"
    with pytest.raises(ValueError, match="0 places marked"):
        write_into(readme, run.BEGIN, "text")


@pytest.mark.parametrize("change", ["another config", "no summary", "no manifest", "no folder"])
def test_a_seed_that_is_not_finished_with_this_config_is_run(run, tmp_path, monkeypatch, change):
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "run"
    if change != "no folder":
        finished_run(run, folder, 1)
        assert run.is_finished(folder, run.config_of(1))
    if change == "another config":
        config = run.config_of(1)["dpo"]
        config["loss_args"]["beta"] = 0.7
        (folder / "dpo/manifest.json").write_text(json.dumps({"config": config}))
    elif change == "no summary":
        (folder / "summary.json").unlink()
    elif change == "no manifest":
        (folder / "ppo/manifest.json").unlink()
    calls = []
    monkeypatch.setattr(experiment.subprocess, "run", lambda command, **options: calls.append((command, options)))
    run.run_unless_finished(1, folder)
    ((command, options),) = calls
    assert command[1:] == ["-m", "alignax.main", "run", "--config=configs/quickstart.py", "--config.seed=1",
                           f"--workdir={folder.resolve()}"]  # fmt: skip
    assert options == {"cwd": ROOT, "check": True}


def test_a_single_seed_has_no_interval(run):
    found = run.collect({0: summary(0)})
    assert found["table"]["ppo"]["gold_reward"] == {"mean": 1.0, "ci95": None}
    assert found["apart"]["ppo"] == {"over_seeds": False, "seeds_over_prompts": 1, "gain": False}
    assert cell(found["table"]["ppo"]["gold_reward"], 2) == "1.00"
