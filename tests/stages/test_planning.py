"""`alignax plan`: what it says of a program is what the stage will run; devices, chips and messages."""

import json
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from errors import refuses
from stage_runs import alone, fails, tiny

from alignax import host, sharding
from alignax.config import ConfigError, plain
from alignax.planning import chips, plan
from alignax.planning.chips import CHIPS, Topology, shape_of, topology
from alignax.planning.hlo import Costs
from alignax.stages import fitting, parents, plans, shapes
from alignax.stages.plans import module_of

MESH = {"replica": 1, "data": 2, "fsdp": 2, "tensor": 2}
HERE = Topology("cpu:8", jax.devices(), None)


class Caught(Exception):
    """The state that a run was about to train."""


def facts(tree):
    """Path -> (shape, dtype, how it is cut) of arrays or shapes."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {sharding.path_name(path): (x.shape, str(x.dtype), x.sharding.spec) for path, x in found}


@pytest.mark.parametrize(
    "step, changes",
    [
        ("dpo", {}),
        ("ppo", {}),
        pytest.param("sft", {}, marks=pytest.mark.slow),
        pytest.param("reward", {}, marks=pytest.mark.slow),
        pytest.param("ppo", {"lora_args": {"rank": 2}}, marks=pytest.mark.slow),
        pytest.param("dpo", {"reference_args": {"alpha": 0.5, "every": 1}}, marks=pytest.mark.slow),
    ],
)
def test_the_state_that_is_planned_is_the_one_that_is_trained(run, step, changes, tmp_path, monkeypatch):
    def loop(stage, state, *_, **__):
        raise Caught(state)

    monkeypatch.setattr(fitting, "loop", loop)
    c = alone(run, step, mesh=MESH, **changes)
    with pytest.raises(Caught) as caught:
        module_of(c).run(c, tmp_path / step)
    made = plans.made(c)
    world = shapes.World(parents.get_mesh(made.mesh), *plan.models(module_of(c), c, made, {}, ""))
    *others, last = module_of(c).programs_of(made, world)
    assert facts(last.arguments["state"]) == facts(caught.value.args[0])
    for program in (*others, last):  # the compiler sees all that lies there
        sizes, twice = plan.by_group(program.arguments)
        account = program.function.lower(*program.arguments.values()).compile().memory_analysis()
        assert account.argument_size_in_bytes == sum(sizes.values()) + twice
    if "lora_args" in changes:  # reference, reward model, critic and policy stand on one decoder
        whole = shapes.params_of(shapes.model_of(world), world.mesh)
        assert 1 <= sizes["frozen"] / sum(plan.by_group({"frozen": whole})[0].values()) < 1.1


@pytest.mark.slow
def test_every_program_of_a_pipeline_is_forecast(run, capsys):
    c = plain(tiny())
    for step in c["steps"]:
        c[step] |= {"mesh": {"replica": 1, "data": 2, "fsdp": 4, "tensor": 1}}
    found = list(plan.forecasts({"steps": c["steps"]} | {step: c[step] for step in c["steps"]}, HERE))
    names = [(one.step, one.program) for one in found]
    assert [x for x in names if x[0] == "ppo"] == [("ppo", "sample"), ("ppo", "score"), ("ppo", "update")]
    assert {("sft", "step"), ("reward", "step"), ("dpo", "step")} < set(names)
    assert "is planned yet" in capsys.readouterr().err  # collect, evaluate
    by = dict(zip(names, found, strict=True))
    one = by["dpo", "step"]
    # Adam's moments are two for each parameter; the reference is as large as the policy
    assert one.arguments["optimizer"] == pytest.approx(2 * one.arguments["parameters"], rel=0.01)
    assert one.arguments["frozen"] == one.arguments["parameters"]
    assert all(one.temporaries >= 0 for one in found)
    sizes = [one.arguments for one in found if one.step == "ppo"]
    assert sizes[0]["frozen"] == sizes[1]["frozen"] == sizes[2]["frozen"]  # also where nobody reads it
    assert one.fits and not one.seconds and one.mfu is None  # of a CPU nobody knows the peak
    assert one.costs.flops > 0 and one.costs.unknown_trips == 0
    assert ("fsdp",) in one.costs.collectives
    assert by["ppo", "sample"].costs.unknown_trips > 0  # who knows when replies end
    record = json.loads(json.dumps(plan.record(one)))
    assert record["fits"] and record["memory"] is None and record["costs"]["collectives"]
    assert plan.table(found, HERE).row_count == len(found)


def test_a_roofline_is_the_longest_of_what_is_busy_at_once():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    there = Topology("h100:8", jax.devices(), CHIPS["h100"], (8,))
    sent = {("fsdp",): 450e9 * 3, ("data", "fsdp"): 450e9}  # all over the same NVLinks
    found = Costs(989e12, 3350e9 / 2, sent, {}, {}, 0)
    assert plan.roofline(found, mesh, there) == {"compute": 1.0, "memory": 0.5, "links": 4.0}
    assert plan.roofline(found, mesh, HERE) == {}


def torus(x, y, z):
    """Devices with their places, the last axis of the mesh along x and y."""
    places = [SimpleNamespace(coords=(i, j, k)) for k in range(z) for j in range(y) for i in range(x)]
    return np.array(places, object).reshape(z, y * x)


def test_a_group_sends_over_the_torus_axes_that_it_spans_both_ways_round_a_ring():
    small = Topology("v5p:2x2x2", [], CHIPS["v5p"], (2, 2, 2))
    large = Topology("v5p:4x4x8", [], CHIPS["v5p"], (4, 4, 8))
    assert plan.lanes(torus(2, 2, 2), (0,), small) == {2: 90e9}
    assert plan.lanes(torus(2, 2, 2), (1,), small) == {0: 90e9, 1: 90e9}
    assert plan.lanes(torus(4, 4, 8), (1,), large) == {0: 180e9, 1: 180e9}
    assert plan.lanes(torus(4, 4, 8)[:4], (0,), large) == {2: 90e9}  # half of a ring is a line
    assert plan.lanes(torus(4, 4, 8), (0, 1), large).keys() == {0, 1, 2}
    line = Topology("v5e:4x4", [], CHIPS["v5e"], (4, 4))
    assert plan.lanes(torus(4, 4, 1), (1,), line) == {0: 45e9, 1: 45e9}  # wraps at 16


@pytest.mark.parametrize(
    "message, total",
    [
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded", 20.5 * 2**30),
        ("the total memory required for HLO temporaries (29.07G) exceeds available HBM (15.75G).", 29.07 * 2**30 + 7.0),
        ("INVALID_ARGUMENT: something else", None),
    ],
)
def test_what_the_compiler_says_of_memory_that_is_not_there(message, total):
    assert plan.over(message, 7.0) == total


def test_a_config_is_planned_for_the_devices_that_are_asked_for(run):
    c = alone(run, "sft", mesh=MESH) | {"mesh": MESH | {"data": 1, "fsdp": 2, "tensor": 1}}
    with refuses(ConfigError, "config.mesh", "8 devices"):
        plans.made(c)
    with host.as_if(jax.devices()[:2], 2**30):
        assert plans.made(c).mesh["fsdp"] == 2
        assert len(host.devices()) == 2
    assert host.devices() == jax.devices()


@pytest.mark.parametrize("name", ["v5p", "v5p:", "v7x:4", "v5p:0x4x4", "h100:a", "", "v5e:4x4x4", "v5p:4x4", "h100:64"])
def test_a_topology_that_there_is_none_of_is_refused_with_those_that_there_are(name):
    with refuses(ConfigError, f"--topology={name}", ":"):
        shape_of(name)


def test_without_the_compiler_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with refuses(ConfigError, "--topology=v5e:4x4", "alignax[plan]", "cpu:8"):
        topology("v5e:4x4")


def test_parents_that_are_not_there_need_a_config(run, capsys, monkeypatch):
    c = alone(run, "dpo", mesh=MESH) | {"init_from": "nowhere"}
    with refuses(ConfigError, "config.init_from = 'nowhere'", "--model"):
        list(plan.forecasts(c, HERE))
    with refuses(ConfigError, "--model=elsewhere"):
        list(plan.forecasts(c, HERE, "elsewhere"))
    monkeypatch.setattr(chips, "topology", lambda name: HERE)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    said = fails(capsys, "plan", "--config=nothing.py", "--topology=cpu:8")
    assert "nothing.py" in said


def test_rows_that_plans_do_not_know_are_said(run):
    c = alone(run, "reward", mesh=MESH) | {"loss": "plackett_luce", "data": {"path": "rankings.jsonl"}}
    with refuses(ConfigError, "Ranked", "demonstrations and of pairs"):
        list(plan.forecasts(c, HERE))


def test_what_waits_is_not_planned_yet(run):
    c = alone(run, "ppo", mesh=MESH) | {"steps_off_policy": 1}
    with refuses(ConfigError, "config.steps_off_policy", "plan"):
        list(plan.forecasts(c, HERE))
