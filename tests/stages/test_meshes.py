"""Stages on meshes of several axes: the numbers of one way to cut them are those of another."""

import jax
import numpy as np
import pytest
from errors import refuses
from stage_runs import alone, metrics, read

from alignax.checkpoint import load_params
from alignax.config import ConfigError
from alignax.stages import plans
from tests.marks import quick

MESH = {"replica": 1, "data": 2, "fsdp": 2, "tensor": 2}
STEPS = ("sft", "reward", "dpo", "ppo")


@pytest.mark.parametrize("step", quick(STEPS, "dpo"))
def test_the_numbers_of_a_stage_do_not_depend_on_the_mesh(run, step, tmp_path):
    wide, rows = (alone(run, step, mesh=mesh) for mesh in (MESH, {"replica": 1, "data": 8, "fsdp": 1, "tensor": 1}))
    one, two = (plans.module_of(c).run(c, tmp_path / name) for name, c in (("wide", wide), ("rows", rows)))
    for want, got in zip(metrics(two), metrics(one), strict=True):
        for name, value in want.items():
            if want["step"] == 1 and name == "rewards/accuracies":
                continue  # of DPO, whose policy is the reference then: the sign of rounding
            if not name.startswith("time/") and isinstance(value, (int, float)):
                assert got[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    trees = [load_params(folder / "params") for folder in (one, two)]
    if step == "reward":  # pairs say nothing of the bias: its gradient is rounding, which Adam makes a whole step of
        trees = [tree | {"scalar": {"kernel": tree["scalar"]["kernel"]}} for tree in trees]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *trees)
    assert read(one / "manifest.json")["config"]["mesh"] == MESH


def test_devices_that_would_share_a_head_are_refused(run, tmp_path):
    c = alone(run, "sft", mesh={"replica": 1, "data": 1, "fsdp": 1, "tensor": 8})
    with refuses(ConfigError, "config.mesh.tensor = 8", "heads", "expected one of"):
        plans.module_of(c).run(c, tmp_path / "wide")


def test_a_batch_divides_over_the_devices_that_split_rows(run):
    c = alone(run, "sft", mesh=MESH) | {"batch_size": 4}
    assert plans.made(c).batch_size == 4  # over data and fsdp, and not over tensor
    with refuses(ConfigError, "config.batch_size", "8"):
        plans.made(c | {"mesh": MESH | {"data": 4, "tensor": 1}})
