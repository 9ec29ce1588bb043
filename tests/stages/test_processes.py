"""Two processes of two devices each give the numbers of one process with four: gloo on this machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from filelock import FileLock
from jax._src.clusters import ClusterEnv
from stage_runs import ROOT, fails, metrics, read

from alignax import host
from alignax.checkpoint import load_params
from alignax.stages import offline, playground

CONFIG = Path(__file__).with_name("processes_config.py")
STEPS, QUICK = ("sft", "reward", "dpo", "ppo", "text"), ("ppo",)  # those that train


def launch(workdir, parent, devices, *flags, steps=QUICK):
    """`alignax run` as a process of its own, with so many devices."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PARENT": str(parent), "JAX_PLATFORMS": "cpu"}
    env |= {"STEPS": " ".join(steps)}
    command = [sys.executable, "-m", "alignax.main", "run", f"--config={CONFIG}", f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def pair(workdir, parent, steps=QUICK):
    """Two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [f"--coordinator=127.0.0.1:{port}", "--process_count=2"]
    return [launch(workdir, parent, 2, *flags, f"--process_id={i}", steps=steps) for i in range(2)]


def finished(processes):
    """The outputs of processes that all end well."""
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(outputs), "\n".join(outputs)[-6000:]
    return outputs


def both(run, base, steps):
    """(folder of one process, folder of two, the outputs of the two); one for all processes of pytest, as `run` is."""
    said = base / "said.json"
    with FileLock(f"{base}.lock"):
        if not said.is_file():
            finished([launch(base / "one", run, 4, steps=steps)])
            said.write_text(json.dumps(finished(pair(base / "two", run, steps))), encoding="utf-8")
    return base / "one", base / "two", read(said)


@pytest.fixture(scope="module")
def folders(run, shared):
    """Of the steps that run every time."""
    return both(run, shared / "processes", QUICK)


@pytest.mark.parametrize("step", QUICK)
def test_the_numbers_are_those_of_one_process(folders, step):
    same(*folders[:2], step)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_the_numbers_of_every_stage_are_those_of_one_process(run, shared, step):
    same(*all_steps(run, shared)[:2], step)


def all_steps(run, shared):
    return both(run, shared / "all_processes", (*STEPS, "probed"))


def same(one, two, step):
    """Whether the numbers and the weights of a step are the same but for rounding."""
    for want, got in zip(metrics(one / step), metrics(two / step), strict=True):
        for name, value in want.items():
            if not name.startswith("time/") and isinstance(value, (int, float)):
                assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    trees = [load_params(folder / step / "params") for folder in (one, two)]
    if step == "reward":  # pairs say nothing of the bias: its gradient is rounding, which Adam makes a whole step of
        trees = [tree | {"scalar": {"kernel": tree["scalar"]["kernel"]}} for tree in trees]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *trees)


@pytest.mark.slow
def test_a_policy_is_probed_by_all_and_measured_as_by_one(run, shared):
    one, two = (read(folder / "probed/eval.json")["policies"] for folder in all_steps(run, shared)[:2])
    for name in one:
        assert two[name]["gold_reward"] == pytest.approx(one[name]["gold_reward"], abs=1e-4)
        assert two[name]["kl"] == pytest.approx(one[name]["kl"], abs=1e-4)


def test_only_the_first_writes_and_speaks(folders):
    _, two, (first, second) = folders
    assert "process 0 of 2, 2 of 4 devices" in first and "process 1 of 2, 2 of 4 devices" in second
    assert "done in" in first and "done in" not in second and "report:" in first and "report:" not in second
    for step in QUICK:
        assert [row["step"] for row in metrics(two / step)] == [1, 2]  # no row twice


def test_a_checkpoint_of_two_is_read_by_one_and_one_of_one_was_read_by_two(folders, run, tmp_path):
    two = folders[1]
    assert (
        read(two / "ppo/manifest.json")["parents"]["policy"]["content_hash"]
        == (read(run / "sft/manifest.json")["content_hash"])
    )
    assert playground.complete(two / "ppo", ["tea ."], max_new_tokens=2)
    c = read(run / "dpo/manifest.json")["config"] | {"init_from": str(two / "ppo")}
    c |= {"data": c["data"] | {"path": str(run / "collect")}, "total_steps": 1, "save_every_steps": 1}
    c |= {"probe": c["probe"] | {"reward_from": str(run / "reward")}}
    folder = offline.run(c, tmp_path / "dpo")
    assert metrics(folder)[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--coordinator=127.0.0.1:9"], "--process_count"),
        (["--process_count=2", "--process_id=0"], "--coordinator"),
        (["--coordinator=127.0.0.1:9", "--process_count=2", "--process_id=2"], "0 to 1"),
    ],
)
def test_flags_that_do_not_fit_are_refused_before_anything_waits(capsys, flags, word):
    assert word in fails(capsys, "run", f"--config={CONFIG}", *flags)


def test_two_processes_stop_together(tmp_path):
    """What the first one refuses, for it alone looks at the folder, ends the other too."""
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/params").write_text("not ours")
    processes = pair(tmp_path, "nowhere", ("sft",))
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], "\n".join(outputs)
    assert "which no stage started here" in outputs[0] and "stopped with process 0" in outputs[1]


def test_one_process_starts_no_devices_before_its_config_is_read(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: pytest.fail("JAX was asked"))  # a config may say how many
    assert host.start() == ""


def test_one_process_is_found_to_be_one(monkeypatch):
    assert not host.detected()
    monkeypatch.setattr(Several, "is_env_present", classmethod(lambda cls: True))
    assert host.detected()


class Several(ClusterEnv):
    """A launcher of two processes, of which JAX is told by this class."""

    @classmethod
    def is_env_present(cls):
        return False

    @classmethod
    def get_process_count(cls):
        return 2
