"""The log: rows that survive a kill, exact floats, one bar per job."""

import json
import math
import subprocess
import sys

import pytest
from errors import refuses

from alignax.log import Log, progress, read_metrics


def write(path, steps, **kwargs):
    with Log(path, 10, title="sft", quiet=True, **kwargs) as log:
        for step in steps:
            log.log(step, {"loss": 1 / step, "objective/kl": 0.1 * step}, times={"step": 0.5})
            if step % 2 == 0:
                log.log(step, {"loss": 2 / step}, split="eval")


def test_rows_are_exact_and_valid_json(tmp_path):
    values = {"a": 0.1 + 0.2, "b": float("nan"), "c": -math.inf, "d": 7, "e": 1e-320}
    with Log(tmp_path, 1, title="x", quiet=True) as log:
        log.log(3, values, times={"step": 0.25})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert list(row) == ["step", "split", "a", "b", "c", "d", "e", "time/step"]
    assert (row["step"], row["split"], row["time/step"]) == (3, "train", 0.25)
    assert math.isnan(row.pop("b"))
    assert {name: row[name] for name in "acde"} == {name: values[name] for name in "acde"}


def test_resume_drops_what_comes_after_and_the_torn_line(tmp_path):
    write(tmp_path / "whole", range(1, 11))
    write(tmp_path / "cut", range(1, 8))
    with (tmp_path / "cut/metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "split": "tr')
    assert [row["step"] for row in read_metrics(tmp_path / "cut/metrics.jsonl")] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7]
    write(tmp_path / "cut", range(5, 11), resume_step=4)
    texts = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
    assert texts[0] == texts[1]
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["metrics.jsonl"]


def test_a_start_from_scratch_has_an_empty_file(tmp_path):
    with Log(tmp_path, 10, title="sft", quiet=True) as log:
        log.log(0, {"loss": 1.0}, split="eval")
    with Log(tmp_path, 10, title="sft", quiet=True) as log:
        log.log(0, {"loss": 1.0}, split="eval")
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_a_row_is_on_disk_before_a_kill(tmp_path):
    code = (
        "import os, signal, sys; from alignax.log import Log\n"
        f"log = Log({str(tmp_path)!r}, 10, title='x', quiet=True)\n"
        "[log.log(step, {'loss': step / 3}) for step in (1, 2, 3)]\n"
        "assert 'jax' not in sys.modules and 'tensorboardX' not in sys.modules\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1 / 3, 2 / 3, 1.0]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for damaged in ('{"step": 2, "spl', '{"split": "train"}', "[1]"):
        path.write_text(f'{{"step": 1}}\n{damaged}\n{{"step": 3}}\n')
        with refuses(ValueError, "metrics.jsonl, line 2", "step"):
            read_metrics(path)


@pytest.mark.parametrize("name", ["step", "split", "time/step"])
def test_taken_names_are_refused(tmp_path, name):
    with Log(tmp_path, 1, title="x", quiet=True) as log, refuses(ValueError, f"{name!r}", "taken"):
        log.log(1, {name: 1.0})


def test_other_processes_write_nothing(tmp_path, capsys):
    with Log(tmp_path / "other", 10, title="x", write=False, tensorboard=True) as log:
        log.log(10, {"loss": 1.0})
    assert not (tmp_path / "other").exists()
    assert capsys.readouterr().err == ""


def test_plain_lines_at_every_tenth(tmp_path, capsys):
    with Log(tmp_path, 200, title="sft", show=("loss",)) as log:
        for step in range(1, 201):
            log.tick(step) if step % 5 else log.log(step, {"x": 3.0, "loss": 1 / step})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("sft  20/200   10%") and lines[0].endswith("loss 0.05")
    assert lines[-1].startswith("sft  200/200  100%  0 s left")


def test_bars_on_a_terminal_nest_and_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    from alignax import log as module

    with Log(tmp_path, 10, title="outer", show=("loss",)) as log:
        log.log(1, {"loss": 0.125})
        assert list(progress(range(3), "inner")) == [0, 1, 2]
        assert module._Bar.users == 1
        tasks = module._Bar.display.tasks
        assert [(task.description, task.completed, task.total) for task in tasks] == [("outer", 1, 10), ("inner", 3, 3)]
        assert tasks[0].fields["text"] == "loss 0.125"
    assert module._Bar.display is None
    assert "outer" in capsys.readouterr().err


def test_progress_gives_up_its_bar_when_the_work_fails(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    from alignax import log as module

    def work():
        yield 1
        raise KeyError("broken")

    with pytest.raises(KeyError):
        list(progress(work(), "work"))
    assert (module._Bar.display, module._Bar.users) == (None, 0)


def test_tensorboard_gets_every_scalar(tmp_path):
    from tensorboardX.proto import event_pb2

    write(tmp_path, [1, 2], tensorboard=True)
    (path,) = (tmp_path / "tensorboard").iterdir()  # records of length, checksum, data, checksum
    data, found = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + size])
        found += [(event.step, value.tag, round(value.simple_value, 6)) for value in event.summary.value]
        data = data[16 + size :]
    assert (2, "train/loss", 0.5) in found and (2, "eval/loss", 1.0) in found and (1, "train/time/step", 0.5) in found
    assert len(found) == 7
