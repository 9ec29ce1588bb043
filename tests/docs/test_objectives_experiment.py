"""experiments/objectives/run.py on made-up figures: what it runs, with which config, and the table that it writes."""

import json

import pytest

from alignax.catalogue import names as losses
from alignax.report.experiment import END
from alignax.stages.plans import made
from experiments import load


@pytest.fixture(scope="module")
def run():
    return load("objectives")


@pytest.mark.slow
def test_every_objective_that_can_start_from_files_is_run(run, tmp_path):
    known = run.names()
    assert len(set(known)) == len(known) > 30 and {"dpo", "kto", "simpo", "grpo", "rloo"} <= set(known)
    assert not {"sft", "bradley_terry"} & set(known) and {"tr_dpo", "xpo", "remax"} <= set(known)
    assert set(known) <= {*losses(), *run.VARIANTS, *run.ONLINE} and {"gkd", "plackett_luce"} <= set(known)
    for name in known:
        c = run.config_of(name, tmp_path, 3)
        if name in run.REWARDS:
            c.reward_from = "set by the run"
        made(c.to_dict())


def test_a_policy_follows_the_reward_model_of_its_row(run, monkeypatch, tmp_path):
    seen = {}

    def stage(name):
        def remember(c, folder):
            seen[name] = c
            folder.mkdir(parents=True)
            (folder / "manifest.json").write_text(json.dumps({"metrics": dict.fromkeys(run.METRICS.values(), 1.0)}))
            return folder

        return type("Stage", (), {"run": staticmethod(remember)})

    for name in ("collect", "reward", "online"):
        monkeypatch.setattr(run, name, stage(name))
    run.run_one("ranked_pairs", tmp_path / "base", tmp_path / "out/ranked_pairs", 5)
    assert seen["collect"].kind == "rankings" and seen["collect"].seed == seen["collect"].data.seed == 5
    assert (seen["reward"].loss, seen["reward"].data.path) == ("ranked_pairs", str(tmp_path / "out/rankings"))
    assert seen["online"].reward_from == str(tmp_path / "out/ranked_pairs-reward")
    assert seen["online"].advantage_args.baseline == "leave_one_out"
    for name in ("collect", "reward", "online"):
        made(seen[name].to_dict())


def test_parents_and_seed_of_a_run(run, tmp_path):
    offline, online, gkd = (run.config_of(name, tmp_path, 3) for name in ("kto", "grpo", "gkd"))
    assert (gkd.loss, gkd.teacher_from, gkd.init_from) == ("gkd", str(tmp_path / "ppo"), str(tmp_path / "sft"))
    assert (offline.loss, offline.seed, offline.data.path) == ("kto", 3, str(tmp_path / "collect"))
    assert (online.loss, online.data.seed, online.reward_from) == ("grpo", 3, str(tmp_path / "reward"))
    tr_dpo = run.config_of("tr_dpo", tmp_path, 3)
    assert tr_dpo.reference_args.alpha == 0.6 and tr_dpo.loss_args.beta == 0.1 and tr_dpo.data.path == offline.data.path
    assert offline.init_from == online.init_from == str(tmp_path / "sft")


def made_up(run, monkeypatch, folder):
    """Three seeds of parents; a run of "ipo" reaches its seed, one of "grpo" twice its seed."""
    for seed in range(3):
        (folder / f"quickstart-seed{seed}").mkdir(parents=True)
        summary = {"stages": {"sft": {"gold_reward": -0.1 * seed, "proxy_reward": 1.0}}}
        (folder / f"quickstart-seed{seed}/summary.json").write_text(json.dumps(summary))

    def run_one(name, base, out, seed):
        assert base == folder / f"quickstart-seed{seed}" and out == folder / f"objectives-seed{seed}" / name
        proxy = {"proxy_reward": 3.0} if name == "ipo" else {}
        return {"gold_reward": (1.0 if name == "ipo" else 2.0) * seed, "kl": 3.0, "length": 15.0} | proxy

    monkeypatch.setattr(run, "run_one", run_one)


def test_the_table_is_sorted_by_gold_and_paired_by_seed(run, monkeypatch, tmp_path, capsys):
    made_up(run, monkeypatch, tmp_path / "runs")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{run.BEGIN}\n{END}\nafter\n")
    options = [f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", f"--readme={readme}", "--write-readme"]
    run.main([*options, "--only", "ipo", "grpo"])
    lines = (tmp_path / "out/results.md").read_text().splitlines()
    # grpo: 0, 2, 4, sd 2, half-width 4.303 * 2 / sqrt(3) = 4.968. Gain: 0, 2.1, 4.2, sd 2.1, half-width 5.217
    assert (
        lines[2]
        == "| grpo | online | 2.00 [-2.97, 6.97] | 2.10 [-3.12, 7.32] | - | 3.00 [3.00, 3.00] | 15.0 [15.0, 15.0] |"
    )
    assert lines[3].startswith("| ipo | offline | 1.00 ") and "| 2.00 [2.00, 2.00] | 3.00 [3.00, 3.00] |" in lines[3]
    assert (tmp_path / "out/results.md").read_text() in readme.read_text()
    found = json.loads((tmp_path / "out/results.json").read_text())
    run.main([*options, "--only", "dpo"])  # the other rows stay
    later = json.loads((tmp_path / "out/results.json").read_text())
    assert set(later["table"]) == {"dpo", "ipo", "grpo"} and later["table"]["grpo"] == found["table"]["grpo"]
    run.main([*options, "--seeds", "0", "1", "--only", "dpo"])  # other seeds: another table
    assert set(json.loads((tmp_path / "out/results.json").read_text())["table"]) == {"dpo"}
    assert found["per_seed"]["grpo"]["2"]["gold_reward"] == 4.0 and str(tmp_path) not in json.dumps(found)
    assert "grpo" in capsys.readouterr().out


def test_missing_parents_are_named_before_anything_runs(run, tmp_path):
    with pytest.raises(SystemExit, match="quickstart-seed7/summary.json is not there: run experiments/quickstart"):
        run.main([f"--runs={tmp_path}", "--seeds", "7"])
