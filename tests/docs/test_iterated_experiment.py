"""experiments/iterated/run.py on made-up runs: what is read of them, and the table."""

import json

import pytest

from alignax.manifest import write_manifest
from experiments import load


@pytest.fixture
def experiment():
    return load("iterated")


def pipeline(folder, shift=0.0):
    """A finished run of two rounds: the reward model's data and metrics, and the end table."""
    shared = {"kl": 2.0, "length": 15.0, "eos_rate": 1.0}
    policy = lambda gold: shared | {  # noqa: E731
        "gold_reward": gold + shift, "gold_reward_ci95": [gold - 1, gold + 1], "gold_gain": gold
    }  # fmt: skip
    folder.mkdir()
    stages = {"sft": policy(0.0), "ppo_1": policy(0.5), "ppo_2": policy(1.0)}
    (folder / "summary.json").write_text(json.dumps({"stages": stages}))
    (folder / "times.json").write_text(json.dumps({"sft": 10.0, "ppo_1": 20.0}))
    for i in (1, 2):
        model = folder / f"reward_{i}"
        (model / "params/x").mkdir(parents=True)
        counts = {"train": {"kept": 90 * i}, "heldout": {"kept": 10 * i}}
        of = dict(stage="reward", makes="reward", name=model.name, config={}, parents={}, content_hash="0", step=1)
        write_manifest(model, **of, data={"counts": counts}, metrics={"heldout_accuracy": 0.6, "gold_accuracy": 0.7})
    return folder


def test_of_one_seed_the_intervals_are_over_prompts(experiment, tmp_path):
    run = experiment.read(pipeline(tmp_path / "a"))
    assert run["wall_seconds"] == 30.0 and run["reward_models"]["ppo_2"]["pairs"] == 200
    text = experiment.markdown(experiment.results({0: run}))
    assert "| ppo_2 | 1.00 [0.00, 2.00] | 1.00 | 2.00 | 15.0 | 1.00 | 0.600 | 0.700 | 200 |" in text
    assert "| sft | 0.00 [-1.00, 1.00] | 0.00 | 2.00 | 15.0 | 1.00 | - | - | - |" in text and "over prompts" in text


def test_of_several_they_are_over_seeds(experiment, tmp_path):
    runs = {seed: experiment.read(pipeline(tmp_path / str(seed), shift=0.1 * seed)) for seed in (0, 1)}
    text = experiment.markdown(experiment.results(runs))
    assert "| ppo_1 | 0.55 [-0.09, 1.19] |" in text and "over seeds" in text  # 0.05 * 12.706 around the mean
