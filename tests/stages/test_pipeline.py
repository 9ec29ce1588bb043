"""One command aligns a model: every stage finishes, twice the same, and only what changed runs again."""

import json
import re
import time

import numpy as np
import pytest
from stage_runs import TINY, facts, file_config, finished, metrics, read, tiny

from alignax.config import plain
from alignax.main import main
from alignax.manifest import read_manifest
from alignax.stages import pipeline, plans, sft

STEPS = ("sft", "collect", "reward", "ppo", "dpo", "evaluate")


def test_every_stage_finishes_and_the_summary_has_the_promised_form(run):
    summary = read(run / "summary.json")
    assert set(finished(run)) == set(STEPS)
    assert list(summary) == ["stages", "reward", "wall_seconds"]
    assert list(summary["stages"]) == ["sft", "dpo", "ppo"]  # what the others are read against, then by name
    for row in summary["stages"].values():
        for name in ("gold_reward", "proxy_reward", "kl"):
            low, high = row[f"{name}_ci95"]
            assert low <= row[name] <= high
    assert summary["stages"]["sft"]["kl"] == 0.0  # it is the reference itself
    assert min(summary["stages"][name]["kl"] for name in ("ppo", "dpo")) > 0.0
    assert 0.0 <= summary["reward"]["heldout_accuracy"] <= 1.0
    assert summary["wall_seconds"] > 0


def test_the_summary_is_what_the_samples_say(run):
    """Means over the prompts of what each policy said there, recomputed from samples.jsonl."""
    rows = [json.loads(line) for line in (run / "evaluate/samples.jsonl").read_text().splitlines()]
    assert len(rows) == 16
    for name, row in read(run / "summary.json")["stages"].items():
        for key, column in (("gold_reward", "gold"), ("proxy_reward", "proxy"), ("kl", "kl")):
            mean = np.mean([found["policies"][name][column] for found in rows])
            np.testing.assert_allclose(row[key], mean, rtol=1e-12)


def test_training_trains(run):
    losses = [row["loss"] for row in metrics(run / "sft")]
    assert len(losses) == 40 and losses[-1] < 0.8 * losses[0]
    first = metrics(run / "dpo")[0]
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=3e-6)  # policy == reference
    first = metrics(run / "ppo")[0]
    np.testing.assert_allclose([first["val/ratio_first"], first["objective/kl"]], [1.0, 0.0], atol=1e-5)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(run, tmp_path):
    again = pipeline.run(tiny(), tmp_path / "again")
    expected, found = facts(run), facts(again)
    assert len(found) == 1 + 6 + 2 * 4  # summary, manifests, metrics and states of the stages that train
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.slow
def test_another_seed_reaches_every_step_and_gives_another_policy(run, tmp_path):
    config = tiny("--config.seed=7")
    assert {config[name].seed for name in STEPS} == {7}
    assert {config[name].data.seed for name in ("sft", "collect", "ppo")} == {7}
    sft.run(config.sft, tmp_path / "sft")
    hashes = [read_manifest(folder / "sft")["content_hash"] for folder in (run, tmp_path)]
    assert hashes[0] != hashes[1]


def test_a_finished_pipeline_is_not_run_again(copy):
    before, table = finished(copy), read(copy / "summary.json")
    begun = time.perf_counter()
    pipeline.run(tiny(), copy)
    assert finished(copy) == before
    assert time.perf_counter() - begun < 10  # nothing was trained or compiled
    again = read(copy / "summary.json")
    assert {**again, "wall_seconds": 0} == {**table, "wall_seconds": 0}


def test_a_changed_value_runs_its_step_and_its_children_again(copy, capsys):
    before = finished(copy)
    assert main(["run", f"--config={TINY}", f"--workdir={copy}", "--config.dpo.loss_args.beta=0.5"]) == 0
    after = finished(copy)
    assert {name for name in STEPS if after[name] != before[name]} == {"dpo", "evaluate"}
    assert "config.loss_args.beta: was 0.1, now 0.5" in " ".join(capsys.readouterr().err.split())
    assert read_manifest(copy / "dpo")["config"]["loss_args"]["beta"] == 0.5


def test_a_stage_alone_gives_what_it_gives_in_the_pipeline(run, tmp_path):
    """configs/world/dpo.py, from the checkpoint named on the line and the preferences beside it."""
    small = tiny().dpo
    values = {name: small[name] for name in ("batch_size", "total_steps", "eval_every_steps", "save_every_steps")}
    values |= {f"probe.{name}": small.probe[name] for name in ("batch_size", "max_new_tokens")}
    values |= {"probe.data.count": 16, "probe.reward_from": run / "reward", "init_from": run / "sft"}
    overrides = [f"--config.{name}={value}" for name, value in values.items()]
    config = str(TINY.parents[1] / "configs/world/dpo.py")
    assert main(["run", f"--config={config}", f"--workdir={tmp_path / 'alone'}", *overrides]) == 0
    alone, piped = (read_manifest(folder) for folder in (tmp_path / "alone", run / "dpo"))
    assert alone["content_hash"] == piped["content_hash"] and alone["metrics"] == piped["metrics"]
    assert (tmp_path / "alone/report.html").is_file()


def test_lineage_draws_the_family_tree(run, capsys):
    assert main(["lineage", str(run)]) == 0
    tree = capsys.readouterr().out
    for name, kind in zip(STEPS, ("sft", "collect", "reward", "online", "offline", "evaluate")):
        digest = read_manifest(run / name)["content_hash"][:8]
        assert re.search(rf"{name}  {kind}  step \d+  {digest}", tree), tree
    assert main(["lineage", str(run / "ppo")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ppo  online")
    assert [line.split()[1] for line in lines if line.startswith(("├", "└"))] == ["policy:", "reward:"]


def test_the_report_shows_the_numbers_of_the_summary(copy, capsys):
    assert main(["report", str(copy)]) == 0
    assert capsys.readouterr().out.strip() == str(copy / "report.html")
    page = (copy / "report.html").read_text()
    summary = read(copy / "summary.json")
    for row in summary["stages"].values():
        low, high = row["gold_reward_ci95"]
        assert f"{row['gold_reward']:.2f} [{low:.2f}, {high:.2f}]" in page
    assert f"held-out accuracy {summary['reward']['heldout_accuracy']:.3f}" in page.lower()
    assert page.count("<svg") >= 4


def test_the_gold_gain_is_paired_by_prompt(run):
    rows = [json.loads(line)["policies"] for line in (run / "evaluate/samples.jsonl").read_text().splitlines()]
    stages = read(run / "summary.json")["stages"]
    for name, stage in stages.items():
        gains = [row[name]["gold"] - row["sft"]["gold"] for row in rows]
        assert stage["gold_gain"] == pytest.approx(sum(gains) / len(gains), abs=1e-9)
        assert stage["gold_gain"] == pytest.approx(stage["gold_reward"] - stages["sft"]["gold_reward"], abs=1e-9)
        low, high = stage["gold_gain_ci95"]
        assert low <= stage["gold_gain"] <= high
    assert stages["sft"]["gold_gain_ci95"] == [0.0, 0.0]


@pytest.mark.parametrize("policy", ["sft", "ppo", "dpo"])
def test_sample_prints_completions(run, policy, capsys):
    prompt = json.loads((run / "evaluate/samples.jsonl").read_text().splitlines()[0])["prompt"]
    command = ["sample", str(run / policy), prompt, prompt, "--n", "2", "--max-new-tokens", "24"]
    texts = []
    for seed in ("0", "0", "1"):
        assert main([*command, "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    lines = texts[0].splitlines()
    assert len(lines) == 6 and lines[0] == lines[3] == f"> {prompt}"
    assert texts[0] == texts[1] != texts[2]


def test_every_world_config_is_accepted_as_it_is():
    for name in ("sft", "collect", "reward", "ppo", "dpo", "distill"):
        plans.made(plain(file_config(f"world/{name}.py")))
