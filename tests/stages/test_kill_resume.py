"""A run that was killed at any moment and started again equals the run that nobody killed, bit for bit."""

import re
import subprocess
import sys

import pytest
from stage_runs import ROOT


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
