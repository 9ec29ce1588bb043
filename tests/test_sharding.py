"""Sharding: names and rules, and the same numbers on one device and on eight, for the objective of every stage."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from errors import refuses
from jax.sharding import PartitionSpec as P
from tiny import close, leaves_by_path, objectives, prompt_batch, tiny
from tiny_online import build_state, compiled

from alignax import sharding
from alignax.train.optimizer import adamw
from alignax.train.step import gradients
from tests.marks import quick

WHOLE, LAST = ("fsdp", "tensor"), ("tensor", "fsdp")
SPECS = {
    "decoder/embed": P(WHOLE, None),
    "decoder/layers/attn_norm/scale": P(),
    "decoder/layers/down/kernel": P(None, *LAST),
    "decoder/layers/gate/kernel": P(None, *WHOLE),
    "decoder/layers/k/kernel": P(None, *WHOLE),
    "decoder/layers/mlp_norm/scale": P(),
    "decoder/layers/o/kernel": P(None, *LAST),
    "decoder/layers/q/kernel": P(None, *WHOLE),
    "decoder/layers/up/kernel": P(None, *WHOLE),
    "decoder/layers/v/kernel": P(None, *WHOLE),
    "decoder/norm/scale": P(),
    "decoder/unembed": P(None, WHOLE),
    "scalar/bias": P(),
    "scalar/kernel": P(),
}
MESHES = {
    "8x1": {"data": 8, "fsdp": 1},
    "2x4": {"data": 2, "fsdp": 4},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
    "4x2": {"data": 4, "tensor": 2},
    "2x1x4": {"replica": 2, "fsdp": 4},
}


def _mesh(name):
    return sharding.make_mesh(MESHES[name])


def _placed(tree, mesh):
    return jax.device_put(tree, sharding.shardings(tree, mesh))


def test_picture_of_the_specs():
    got = sharding.shardings(tiny(scalar=True, tie_embeddings=False)[1], _mesh("2x2x2"))
    assert {name: leaf.spec for name, leaf in leaves_by_path(got).items()} == SPECS


def test_kernels_of_experts_are_cut_where_those_of_one_layer_are_and_sinks_and_biases_are_not():
    params = tiny(experts=2, experts_per_token=1, mlp_bias=True, sinks=True)[1]
    got = leaves_by_path(sharding.shardings(params["decoder"], _mesh("2x4")))
    cut = {name: leaf.spec for name, leaf in got.items() if "experts" in name or "sinks" in name}
    assert {name: spec for name, spec in cut.items() if spec != P()} == {
        "layers/experts/gate": P(None, None, "fsdp", None),
        "layers/experts/up": P(None, None, "fsdp", None),
        "layers/experts/down": P(None, None, None, "fsdp"),
    }
    assert len(cut) == 9  # kernels and biases of router, gate, up and down; sinks


def test_an_axis_that_the_mesh_does_not_divide_stays_whole():
    tree = {"layers": {"q": {"kernel": jnp.zeros((2, 6, 8))}}, "embed": jnp.zeros((64, 16))}
    got = leaves_by_path(sharding.shardings(tree, _mesh("2x4")))
    assert got["layers/q/kernel"].spec == P(None, None, None)  # 6 is no multiple of 4
    assert got["embed"].spec == P("fsdp", None)


def test_optimizer_states_lie_with_their_parameters_and_factored_ones_are_copied():
    params = tiny()[1]
    moments = sharding.shardings(adamw(total_steps=4).transform.init(params), _mesh("2x2x2"))
    specs = {name: leaf.spec for name, leaf in leaves_by_path(moments).items()}
    for name in ("decoder/embed", "decoder/layers/q/kernel"):
        own = {spec for path, spec in specs.items() if path.endswith(name)}
        assert own == {SPECS[name]}
    # a row statistic of the embedding has one axis and the embedding's name: the rule for two axes does not apply
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=1).init(params["decoder"])
    rows = sharding.shardings(factored, _mesh("2x4")).v_row["embed"]
    assert rows.spec == P()


def test_first_rule_wins_and_rules_are_data():
    rules = ((r"embed", (None, "data")), (r".*", ("fsdp",)))
    got = leaves_by_path(sharding.shardings({"embed": jnp.zeros((4, 4)), "other": jnp.zeros(4)}, _mesh("2x4"), rules))
    assert got["embed"].spec == P(None, "data") and got["other"].spec == P("fsdp")


def test_names_of_axes_are_known():
    with refuses(ValueError, "mesh.model", "tensor"):
        sharding.make_mesh({"data": 4, "model": 2})


@dataclasses.dataclass(frozen=True)
class Device:
    """One of a pod."""

    process_index: int


def test_rows_are_of_one_process():
    devices = [Device(i // 4) for i in range(8)]  # two processes of four
    make = lambda **axes: sharding.make_mesh(axes, devices)  # noqa: E731
    assert not sharding.rows_of_several(make(data=2, tensor=4)) and not sharding.rows_of_several(make(fsdp=8))
    assert sharding.rows_of_several(make(tensor=8)) and not sharding.rows_of_several(make(replica=2, fsdp=2, tensor=2))
    # whatever the order in a config, copies lie farthest apart
    assert make(tensor=2, data=2, replica=2).axis_names == ("replica", "data", "tensor")


def test_mesh_fills_in_one_size():
    assert dict(sharding.make_mesh({"data": -1, "fsdp": 4}).shape) == {"data": 2, "fsdp": 4}
    assert dict(sharding.make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize(
    "axes", [{"data": 3, "fsdp": -1}, {"data": -1, "fsdp": -1}, {"data": 4, "fsdp": 4}, {"data": 4}]
)
def test_mesh_that_does_not_fit_says_so(axes):
    with refuses(ValueError, str(axes), "8 devices"):
        sharding.make_mesh(axes)


@pytest.mark.parametrize("name", MESHES)
def test_put_batch_gives_every_device_its_rows(name):
    batch = sharding.put_batch({"tokens": np.arange(16).reshape(16, 1)}, _mesh(name))
    held = [shard.data.ravel().tolist() for shard in batch["tokens"].addressable_shards]
    parts = sharding.row_shards(_mesh(name))  # devices that share the width of layers have the same rows
    assert sorted(held) == sorted(np.arange(16).reshape(parts, -1).tolist() * (8 // parts))


def test_put_batch_refuses_rows_that_do_not_divide():
    with refuses(ValueError, "12 rows", "multiple of 8"):
        sharding.put_batch({"tokens": np.zeros((12, 3))}, _mesh("8x1"))


OBJECTIVES = objectives(tiny(tie_embeddings=False)[0])


@functools.lru_cache
def _arguments(stage):
    """(params, frozen, batch) of a stage's objective on one device."""
    _, batch, scalar = OBJECTIVES[stage]
    return *(tiny(seed=seed, scalar=scalar, tie_embeddings=False)[1] for seed in (0, 1)), batch


@functools.lru_cache
def _program(stage, mesh_name):
    """The compiled gradient of a stage's objective, and its arguments in their places."""
    objective, (params, frozen, batch) = OBJECTIVES[stage][0], _arguments(stage)
    if mesh_name is not None:
        mesh = _mesh(mesh_name)
        objective = objectives(tiny(tie_embeddings=False, constrain=sharding.rows(mesh))[0])[stage][0]
        params, frozen, batch = _placed(params, mesh), _placed(frozen, mesh), sharding.put_batch(batch, mesh)
    run = jax.jit(lambda p, f, b: gradients(lambda p, b: objective(p, f, b), p, b))
    return run.lower(params, frozen, batch).compile(), (params, frozen, batch)


def _run(stage, mesh_name):
    program, arguments = _program(stage, mesh_name)
    return program(*arguments)


@pytest.mark.parametrize("mesh_name", quick(MESHES, "8x1", "2x4", "2x2x2"))
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_eight_devices_give_the_gradients_and_metrics_of_one(stage, mesh_name):
    (grads, metrics), (grads_8, metrics_8) = _run(stage, None), _run(stage, mesh_name)
    close(grads_8, grads, atol=1e-5)
    close(metrics_8, metrics, rtol=1e-5, atol=1e-5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) > 1e-2


@pytest.fixture(scope="module")
def iteration_alone():
    """The state and metrics after one PPO iteration on one device."""
    algorithm, iteration, frozen = compiled()
    return iteration(build_state(algorithm), frozen, prompt_batch())


@pytest.mark.parametrize("name", quick(MESHES, "2x2x2"))
def test_eight_devices_give_the_ppo_iteration_of_one(iteration_alone, name):
    mesh, (algorithm, iteration, frozen) = _mesh(name), compiled()
    args = _placed(build_state(algorithm), mesh), _placed(frozen, mesh), sharding.put_batch(prompt_batch(), mesh)
    state, metrics = iteration(*args)
    close(state, iteration_alone[0], atol=1e-5)
    close(metrics, iteration_alone[1], rtol=1e-4, atol=1e-5)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.policy.params, build_state(algorithm).policy.params)
    assert max(jax.tree.leaves(moved)) > 1e-2  # a thousand times the tolerance


def test_compiled_programs_hold_the_collectives_of_their_mesh():
    # trap J9. Data parallel: whole kernels [16, 32] are on every device and their gradients are added up; no array of
    # floats is gathered. Fully sharded: slices [4, 32] of kernels are gathered for use, and their gradients added up
    data, both = (_program("sft", mesh_name)[0].as_text() for mesh_name in ("8x1", "2x4"))
    reduced = lambda text: " ".join(re.findall(r"= (.*) (?:all-reduce|reduce-scatter)(?:-start)?\(", text))  # noqa: E731
    assert "f32[16,32]" in reduced(data) and not re.search(r"= f32\S* all-gather", data)
    assert re.search(r"= f32\[16,32\]\S* all-gather", both)
    assert re.search(r"f32\[(16|4),32\]", reduced(both))
    assert all("num_partitions=8" in text for text in (data, both))


def test_fully_sharded_means_that_rows_stay_split_over_all_devices():
    # 8 rows of 12 tokens over 8 devices: a device multiplies [12, D], not the [48, D] of the 4 rows of its data group
    assert not re.search(r"f32\[48,\d+\]", _program("sft", "2x4")[0].as_text())


def test_sharded_parameters_take_less_memory_per_device():
    params, frozen, batch = _arguments("sft")
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    rows = sum(leaf.nbytes for leaf in jax.tree.leaves(batch)) / 8
    size = {name: _program("sft", name)[0].memory_analysis().argument_size_in_bytes - rows for name in ("8x1", "2x4")}
    np.testing.assert_allclose(size["8x1"], whole, rtol=0.02)  # frozen is not read by SFT: no argument
    norms = 4 * (2 * 2 * 16 + 16)  # bytes that no rule cuts
    np.testing.assert_allclose(size["2x4"], (whole - norms) / 4 + norms, rtol=0.02)
    # of two devices that share the width of layers each has a half of what a data group of two has, and all its rows
    both = _program("sft", "2x2x2")[0].memory_analysis().argument_size_in_bytes - 2 * rows
    np.testing.assert_allclose(both, (whole - norms) / 4 + norms, rtol=0.02)


def test_the_width_of_layers_stays_cut_and_no_logits_are_gathered():
    """Of devices that share it each multiplies by its own columns; sums over them are all that is exchanged."""
    text = _program("sft", "4x2")[0].as_text()
    assert "all-gather" not in text and "all-to-all" not in text and "all-reduce" in text
    # beside fully sharded parameters each gathers its own half of a kernel [16, 32], and never all columns
    assert not re.search(r"= f32\[16,32\]\S* all-gather", _program("sft", "2x2x2")[0].as_text())
