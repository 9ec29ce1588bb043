"""Runs that cannot go on: nan in a loss, a disk that is full. The last good checkpoint stays, a later run finishes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from errors import names
from stage_runs import ROOT, fails, metrics, write_rows

from alignax.data.loader import Loader
from alignax.data.read import is_heldout
from alignax.main import main
from alignax.manifest import read_manifest

SFT = Path(__file__).with_name("text_sft.py")


@pytest.fixture
def rows(tmp_path):
    """24 rows, about a quarter of them held out; the reply of one row to train on has 10 tokens, all others 3."""
    prompts = [f"mara asks : {'tea ' * (index % 8 + 1)}{'cake ' * (index // 8)}" for index in range(24)]
    longest = next(prompt for prompt in reversed(prompts) if not is_heldout(prompt, 25.0))
    made = [{"prompt": p, "completion": "tea " * (10 if p == longest else 3)} for p in prompts]
    train = [p for p in prompts if not is_heldout(p, 25.0)]
    return write_rows(tmp_path / "rows.jsonl", made), train.index(longest), len(train)


def test_nan_in_a_loss_stops_names_the_step_and_keeps_the_last_good_checkpoint(rows, tmp_path, capsys):
    path, poison, count = rows
    # the loss is nan for the batch that holds the long reply; batches follow from (seed, step), steps count from 1
    loader = Loader({"row": np.arange(count)}, 8, 0)
    step = next(step for step in range(1, 10) if poison in loader.batch(step - 1)["row"])
    seed = 0
    while step == 1:  # a seed with a good step before the bad one
        seed += 1
        loader = Loader({"row": np.arange(count)}, 8, seed)
        step = next(step for step in range(1, 10) if poison in loader.batch(step - 1)["row"])
    command = ["run", f"--config={SFT}:{path}", f"--workdir={tmp_path / 'sft'}", f"--config.seed={seed}"]
    command += ["--config.loss=poisoned_loss:poisoned", "--config.loss_args={'limit': 8}"]
    for _ in range(2):  # the second run goes on from the checkpoint, and stops at the same step
        err = fails(capsys, *command)
        assert f"step {step}: loss is nan" in err.replace("grad_norm is nan, loss is nan", "loss is nan")
        names(err, f"step {step - 1} in {tmp_path / 'sft/steps'}", "kept")
        assert sorted(int(folder.name) for folder in (tmp_path / "sft/steps").iterdir())[-1] == step - 1
        assert [row["step"] for row in metrics(tmp_path / "sft")] == list(range(1, step))
        assert not (tmp_path / "sft/manifest.json").exists()


@pytest.mark.parametrize("limit_kb", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_at_a_save_says_so_and_a_later_run_finishes(rows, limit_kb, compiled, tmp_path):
    """A limit on the size of a file stands for the full disk: in both cases a write fails in the middle.

    40 kB are too few for the train state, 4 kB for the records beside it too.
    """
    workdir = tmp_path / "sft"
    command = [sys.executable, "-m", "alignax.main", "run", f"--config={SFT}:{rows[0]}", f"--workdir={workdir}"]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
    limited = ["bash", "-c", f'ulimit -Sf {limit_kb}; exec "$@"', "bash", *command]  # in units of 1024 bytes
    stopped = subprocess.run(limited, cwd=ROOT, env=env, capture_output=True, text=True)
    assert stopped.returncode == 1, stopped.stderr
    err = " ".join(stopped.stderr.split())
    assert "alignax: " in err and "File too large" in err, stopped.stderr
    assert "alignax/main.py" not in err, stopped.stderr  # no traceback: the error was caught and explained
    assert str(tmp_path) in err
    assert not (workdir / "manifest.json").exists()
    assert main(["run", f"--config={SFT}:{rows[0]}", f"--workdir={workdir}"]) == 0
    assert read_manifest(workdir)["step"] == 4
    assert [row["step"] for row in metrics(workdir)] == [1, 2, 3, 4]
