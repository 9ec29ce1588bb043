"""A finished pipeline of every stage, in this process and on eight devices."""

import os
import shutil
from pathlib import Path

import jax
import pytest
import stage_runs
from filelock import FileLock

from alignax.stages import pipeline


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder for all processes of a run of the tests."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def compiled(shared):
    """The folder of compiled programs: that of JAX_COMPILATION_CACHE_DIR, or a new one for all processes of a run."""
    folder = Path(jax.config.jax_compilation_cache_dir or shared / "compiled")
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module", autouse=True)
def cache(compiled):
    """Tests of this folder share compiled programs; those of other folders compile as always."""
    with stage_runs.cached(compiled):
        yield


@pytest.fixture(scope="session")
def run(compiled, shared):
    """The folder of a finished tiny pipeline, for reading only: a test that changes it makes a copy.

    One for all processes of a run: the first that needs it makes it, and the others wait.
    """
    folder = shared / "runs/tiny"
    with FileLock(shared / "runs.lock"), stage_runs.cached(compiled):
        if not (folder / "summary.json").is_file():
            pipeline.run(stage_runs.tiny(), folder)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the finished pipeline, with the times of its files."""
    return shutil.copytree(run, tmp_path / "tiny")
