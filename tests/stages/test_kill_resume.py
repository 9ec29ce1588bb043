"""A run that was killed at any moment and started again equals the run that nobody killed, bit for bit."""

import re
import signal
import subprocess
import sys
import time

import pytest
from stage_runs import ROOT

from alignax.host import RETRY
from benchmarks import kill_resume


@pytest.mark.slow
def test_runs_that_were_killed_and_resumed_equal_the_uninterrupted_one(tmp_path):
    """Three kills with SIGKILL: in SFT, in PPO (adaptive KL coefficient, critic, running moments), during a save."""
    command = [sys.executable, ROOT / "benchmarks/kill_resume.py", "--points", "3", "--size", "short"]
    done = subprocess.run([*command, "--workdir", tmp_path], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "uninterrupted, twice: equal" in done.stdout
    kills = re.findall(r"^\| \d+ \| (\w+) \| (\w+) .*? \| (\w+) \|$", done.stdout, re.MULTILINE)
    assert [(aim, verdict) for aim, _, verdict in kills] == [("sft", "equal"), ("ppo", "equal"), ("save", "equal")]
    assert [place for _, place, _ in kills][:2] == ["sft", "ppo"]


@pytest.mark.slow
@pytest.mark.parametrize("stage, step", [("sft", 7), ("ppo", 2)])
def test_a_run_that_sigterm_stops_has_saved_its_step_and_goes_on_exactly(tmp_path, stage, step):
    """A machine that is taken away; the last checkpoint of the config's own is older than the step."""
    cache = tmp_path / "cache"
    kill_resume.finish(tmp_path / "whole", "short", cache)
    process = kill_resume.launch(tmp_path / "stopped", "short", cache)
    while kill_resume.last_step(tmp_path / "stopped" / stage) < step:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == RETRY
    said = " ".join(kill_resume.tail(tmp_path / "stopped").split())
    assert "the step is saved" in said
    done = max(int(folder.name) for folder in (tmp_path / "stopped" / stage / "steps").iterdir())
    assert step <= done == kill_resume.last_step(tmp_path / "stopped" / stage)
    kill_resume.finish(tmp_path / "stopped", "short", cache)
    assert kill_resume.facts(tmp_path / "stopped") == kill_resume.facts(tmp_path / "whole")
