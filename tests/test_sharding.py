"""Sharding: names and rules, and the same numbers on one device and on eight, for the objective of every stage."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from tiny import close, demo_batch, leaves_by_path, objectives, prompt_batch, tiny
from tiny_online import build_state, compiled

from alignax import sharding
from alignax.train.optimizer import adamw
from alignax.train.step import gradients

SPECS = {
    "decoder/embed": P("fsdp", None),
    "decoder/layers/attn_norm/scale": P(),
    "decoder/layers/down/kernel": P(None, None, "fsdp"),
    "decoder/layers/gate/kernel": P(None, "fsdp", None),
    "decoder/layers/k/kernel": P(None, "fsdp", None),
    "decoder/layers/mlp_norm/scale": P(),
    "decoder/layers/o/kernel": P(None, None, "fsdp"),
    "decoder/layers/q/kernel": P(None, "fsdp", None),
    "decoder/layers/up/kernel": P(None, "fsdp", None),
    "decoder/layers/v/kernel": P(None, "fsdp", None),
    "decoder/norm/scale": P(),
    "decoder/unembed": P(None, "fsdp"),
    "scalar/bias": P(),
    "scalar/kernel": P(),
}
MESHES = {"8x1": {"data": 8, "fsdp": 1}, "2x4": {"data": 2, "fsdp": 4}}


def _mesh(name):
    return sharding.make_mesh(MESHES[name])


def _placed(tree, mesh):
    return jax.device_put(tree, sharding.shardings(tree, mesh))


def test_picture_of_the_specs():
    got = sharding.shardings(tiny(scalar=True, tie_embeddings=False)[1], _mesh("2x4"))
    assert {name: leaf.spec for name, leaf in leaves_by_path(got).items()} == SPECS


def test_an_axis_that_the_mesh_does_not_divide_stays_whole():
    tree = {"layers": {"q": {"kernel": jnp.zeros((2, 6, 8))}}, "embed": jnp.zeros((64, 16))}
    got = leaves_by_path(sharding.shardings(tree, _mesh("2x4")))
    assert got["layers/q/kernel"].spec == P(None, None, None)  # 6 is no multiple of 4
    assert got["embed"].spec == P("fsdp", None)


def test_optimizer_states_lie_with_their_parameters_and_factored_ones_are_copied():
    params = tiny()[1]
    moments = sharding.shardings(adamw(total_steps=4).transform.init(params), _mesh("2x4"))
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


def test_mesh_fills_in_one_size():
    assert dict(sharding.make_mesh({"data": -1, "fsdp": 4}).shape) == {"data": 2, "fsdp": 4}
    assert dict(sharding.make_mesh({"data": -1, "fsdp": 1}, jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize("axes", [{"data": 3, "fsdp": -1}, {"data": -1, "fsdp": -1}, {"data": 4, "fsdp": 4}, {"data": 4}])
def test_mesh_that_does_not_fit_says_so(axes):
    with pytest.raises(ValueError, match=rf"{re.escape(str(axes))} does not fit 8 devices"):
        sharding.make_mesh(axes)


@pytest.mark.parametrize("name", MESHES)
def test_put_batch_gives_every_device_its_rows(name):
    batch = sharding.put_batch({"tokens": np.arange(16).reshape(16, 1)}, _mesh(name))
    held = [shard.data.ravel().tolist() for shard in batch["tokens"].addressable_shards]
    assert sorted(held) == [[2 * i, 2 * i + 1] for i in range(8)]


def test_put_batch_refuses_rows_that_do_not_divide():
    with pytest.raises(ValueError, match="12 rows does not divide over 8 devices: make it a multiple of 8"):
        sharding.put_batch({"tokens": np.zeros((12, 3))}, _mesh("8x1"))


@pytest.fixture(scope="module", params=sorted(objectives(tiny()[0])))
def alone(request):
    """(gradient function, params, frozen, batch, gradients and metrics on one device) of each objective."""
    model, _ = tiny(tie_embeddings=False)
    objective, batch, scalar = objectives(model)[request.param]
    params, frozen = (tiny(seed=seed, scalar=scalar, tie_embeddings=False)[1] for seed in (0, 1))
    run = jax.jit(lambda p, f, b: gradients(lambda p, b: objective(p, f, b), p, b))
    return run, params, frozen, batch, run(params, frozen, batch)


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_give_the_gradients_and_metrics_of_one(alone, name):
    run, params, frozen, batch, (grads, metrics) = alone
    mesh = _mesh(name)
    got, got_metrics = run(_placed(params, mesh), _placed(frozen, mesh), sharding.put_batch(batch, mesh))
    close(got, grads, atol=1e-5)
    close(got_metrics, metrics, rtol=1e-5, atol=1e-5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads)) > 1e-2


@pytest.fixture(scope="module")
def iteration_alone():
    """The state and metrics after one PPO iteration on one device."""
    parts, iteration, frozen = compiled()
    return iteration(build_state(parts), frozen, prompt_batch())


@pytest.mark.parametrize("name", MESHES)
def test_eight_devices_give_the_ppo_iteration_of_one(iteration_alone, name):
    mesh, (parts, iteration, frozen) = _mesh(name), compiled()
    args = _placed(build_state(parts), mesh), _placed(frozen, mesh), sharding.put_batch(prompt_batch(), mesh)
    state, metrics = iteration(*args)
    close(state, iteration_alone[0], atol=1e-5)
    close(metrics, iteration_alone[1], rtol=1e-4, atol=1e-5)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.policy.params, build_state(parts).policy.params)
    assert max(jax.tree.leaves(moved)) > 1e-2  # a thousand times the tolerance


@functools.lru_cache
def _program(name):
    model, params = tiny()
    objective, batch, _ = objectives(model)["sft"]
    mesh = _mesh(name)
    params = _placed(params, mesh)
    where = jax.tree.map(lambda leaf: leaf.sharding, params)
    run = jax.jit(lambda p, b: gradients(lambda p, b: objective(p, (), b), p, b)[0], out_shardings=where)
    return run.lower(params, sharding.put_batch(batch, mesh)).compile()


def test_compiled_programs_hold_the_collectives_of_their_mesh():
    # trap J9. Data parallel: whole parameters everywhere, gradients added up. Fully sharded: parameters are gathered
    # before use, and gradients are added up over groups of devices (XLA on CPU may split them afterwards by slices)
    data, both = _program("8x1").as_text(), _program("2x4").as_text()
    assert "all-reduce" in data and "all-gather" not in data
    assert "all-gather" in both and ("reduce-scatter" in both or "all-reduce" in both)
    assert all(f"num_partitions={8}" in text for text in (data, both))


def test_sharded_parameters_take_less_memory_per_device():
    size = {name: _program(name).memory_analysis().argument_size_in_bytes for name in MESHES}
    batch = sum(leaf.nbytes for leaf in jax.tree.leaves(demo_batch())) / 8
    assert size["2x4"] - batch < 0.35 * (size["8x1"] - batch)  # a quarter, and the norm scales
