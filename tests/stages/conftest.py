"""A finished pipeline of every stage, in this process and on eight devices."""

import shutil

import pytest
import stage_runs
from filelock import FileLock

from alignax.stages import pipeline


@pytest.fixture(scope="session")
def run(shared):
    """The folder of a finished tiny pipeline, for reading only: a test that changes it makes a copy.

    One for all processes of a run: the first that needs it makes it, and the others wait.
    """
    folder = shared / "runs/tiny"
    with FileLock(shared / "runs.lock"):
        if not (folder / "summary.json").is_file():
            pipeline.run(stage_runs.tiny(), folder)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the finished pipeline, with the times of its files."""
    return shutil.copytree(run, tmp_path / "tiny")
