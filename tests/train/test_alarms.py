"""Alarms: when they call, once each, across a resume, and what stops a run."""

import json

import pytest
from errors import refuses

from alignax.train.alarms import Alarm, Alarmed, Alarms, alarm

KL = Alarm("objective/kl", above=20.0)
PLAYED = Alarm("eval/gold_reward", while_rises="eval/proxy_reward", over=2)


def calls(path):
    file = path / "alarms.jsonl"
    return (
        [(row["step"], row["alarm"]) for row in map(json.loads, file.read_text().splitlines())] if file.exists() else []
    )


def test_an_alarm_is_said_when_it_begins_and_again_after_it_has_ended(tmp_path, capsys):
    watch = Alarms({"kl": KL}, tmp_path, 10)
    for step, value in enumerate([1.0, 21.0, 25.0, 3.0, 30.0]):
        watch.look(step, {"objective/kl": value})
        watch.look(step, {"eval/other": 1.0})  # a row that says nothing of it changes nothing
    assert calls(tmp_path) == [(1, "kl"), (4, "kl")]
    assert "alarm 'kl' at step 1: objective/kl is 21, above 20" in " ".join(capsys.readouterr().err.split())


def test_a_proxy_that_rises_alone(tmp_path):
    watch = Alarms({"played": PLAYED}, tmp_path, 10)
    proxy, gold = [0.0, 1.0, 2.0, 3.0, 4.0, 3.5], [0.0, 0.5, 0.4, 0.6, 0.3, 0.2]
    for step, (p, g) in enumerate(zip(proxy, gold)):
        watch.look(step, {"eval/proxy_reward": p, "eval/gold_reward": g})
    # over two steps gold went 0 -> 0.4 (step 2), 0.5 -> 0.6, 0.4 -> 0.3 (step 4: it calls), and then the proxy fell
    assert calls(tmp_path) == [(4, "played")]


def test_a_run_that_goes_on_remembers(tmp_path):
    rows = [{"step": i, "split": "eval", "eval/proxy_reward": i, "eval/gold_reward": -i} for i in range(2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Alarms({"played": PLAYED}, tmp_path, 10, resume_step=1).look(2, {"eval/proxy_reward": 2, "eval/gold_reward": -2})
    assert calls(tmp_path) == [(2, "played")]
    # one that had begun before is not said again
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "split": "train", "objective/kl": 40.0}) + "\n")
    Alarms({"kl": KL}, tmp_path, 10, resume_step=2).look(2, {"objective/kl": 41.0})
    assert calls(tmp_path) == [(2, "played")]


def test_one_that_stops_the_run_is_written_first(tmp_path):
    watch = Alarms({"low": Alarm("acc", below=0.65, stop=True)}, tmp_path, 10)
    watch.look(1, {"acc": 0.7})
    with refuses(Alarmed, "step 2: alarm 'low': acc is 0.5, below 0.65", "config.alarms.low.stop"):
        watch.look(2, {"acc": 0.5})
    assert calls(tmp_path) == [(2, "low")]
    Alarms({"low": KL}, tmp_path, 10, write=False).look(3, {"objective/kl": 99.0})
    assert calls(tmp_path) == [(2, "low")]


def test_one_that_began_before_may_be_told_to_stop_the_run(tmp_path):
    rows = [{"step": step, "split": "train", "objective/kl": value} for step, value in ((1, 30.0), (3, 1.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    watch = Alarms({"kl": KL._replace(stop=True)}, tmp_path, 10, resume_step=2)  # the row of step 3 comes again
    with refuses(Alarmed, "step 3: alarm 'kl': objective/kl is 31"):
        watch.look(3, {"objective/kl": 31.0})


def test_silence_before_its_time_and_rows_that_are_taken_back(tmp_path):
    watch = Alarms({"low": Alarm("acc", below=0.65, after_percent=50.0)}, tmp_path, 10)
    for step in (0, 4, 5, 9):
        watch.look(step, {"acc": 0.5 if step != 5 else 0.7})
    assert calls(tmp_path) == [(9, "low")]
    Alarms({"low": KL}, tmp_path, 10, resume_step=8)  # what came after the checkpoint comes again
    assert calls(tmp_path) == []


@pytest.mark.parametrize(
    "settings, key",
    [
        (dict(metric=""), "metric = ''"),
        (dict(metric="x"), "metric = 'x'"),
        (dict(metric="x", above=1.0, below=2.0), "above = 1.0, below = 2.0"),
        (dict(metric="x", while_rises="y", over=0), "over = 0"),
        (dict(metric="x", above=1.0, after_percent=101.0), "after_percent = 101.0"),
    ],
)
def test_settings_that_cannot_be(settings, key):
    with refuses(ValueError, key, "expected"):
        alarm(**settings)
    assert alarm(metric="x", above=1.0) == Alarm("x", above=1.0)
