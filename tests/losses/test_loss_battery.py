"""One battery over every file of losses/: a new objective is put through all of it by being there."""

import functools
import inspect
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as Spec
from loss_inputs import (
    NAMES,
    SURROGATES,
    fill_masked,
    is_float,
    loss,
    make,
    map_floats,
    record_type,
    value_and_grad,
    with_masks,
)

from alignax.catalogue import objective
from alignax.ops.checks import Scalar, fact
from alignax.ops.masked import denominator, metric_ratios, metric_sums, reduce, reduce_metrics

pytestmark = pytest.mark.parametrize("name", NAMES)

# every value that a string hyperparameter of some loss takes, and one that none takes
STRINGS = ("k1", "k2", "k3", "k3+k2", "token_mean", "sequence_sum", "conservative", "unbiased", "sum", "mean")
STRINGS += ("sampled", "none", "reverse_kl", "forward_kl", "js", "alpha", "?")
# bounds that no token of a random record reaches: where they are drawn in to, so that they bite
REACHED = {("ppo_dual_clip", "max_ratio"): 1.3, ("cispo", "max_ratio"): 1.2, ("clip_cov", "cov_high"): 2.0}
# losses that their defaults make too small for a change to be seen: what the other settings are changed from
SHOWN = {"dr_grpo": {"max_tokens": 4.0}, "clip_cov": {"fraction": 0.01}}
REST = (np.nan, np.inf, -np.inf, 1e30)


@functools.cache
def compiled(name):
    """record -> (loss, gradient of every float array, metrics): the one program that most tests run."""

    def everything(record):
        return *value_and_grad(loss(name), record), reduce_metrics(loss(name)(record).metrics)

    return jax.jit(everything)


def couples_rows(name):
    return fact(loss(name), "whole_batch")


def rows(record, index):
    return jax.tree.map(lambda x: x[index], record)


def test_file_and_signature(name):
    fn = loss(name)
    assert fn.__name__ == name and fn.__module__ == f"alignax.losses.{name}" and fn.__doc__
    first, *rest = inspect.signature(fn).parameters.values()
    assert first.default is first.empty
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in rest)
    assert record_type(name).__name__ == objective(name).record
    assert objective(name).use and fn.__doc__.strip().splitlines()[-1].lstrip().startswith("Use when ")
    assert objective(name).paper, "name the paper in the docstring: Author et al. 2020, or its arXiv number"
    module = inspect.getmodule(fn)
    public = [k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
    assert public == [name], f"losses/{name}.py defines {public}: one public function of the same name"


def test_jit_is_eager_and_traces_once(name):
    chex.clear_trace_counter()
    traced = jax.jit(chex.assert_max_traces(lambda record: loss(name)(record), n=1))
    for seed in (0, 1):
        record = make(name, seed=seed)
        with jax.numpy_dtype_promotion("strict"):
            eager = loss(name)(record)
        chex.assert_trees_all_close(traced(record), eager, rtol=1e-5, atol=1e-6)
        assert eager.value.shape == eager.weight.shape
        for values, weights in eager.metrics.values():
            assert values.shape == weights.shape


def test_float32_out_whatever_comes_in(name):
    record = map_floats(lambda x: x.astype(jnp.bfloat16), make(name))
    out = jax.eval_shape(lambda record: jax.tree.leaves(loss(name)(record)), record)
    assert {leaf.dtype for leaf in out} == {jnp.dtype("float32")}
    value = reduce(loss(name)(record))
    widened = reduce(loss(name)(map_floats(lambda x: x.astype(jnp.float32), record)))
    np.testing.assert_allclose(value, widened, rtol=1e-6)  # the arithmetic is float32; only the inputs are rounded


def test_masked_lanes_may_hold_anything(name):
    record = with_masks(make(name), lambda mask: mask.at[0].set(False))  # one row is masked whole
    clean, dirty = (compiled(name)(fill_masked(record, filler)) for filler in (0.0, REST))
    chex.assert_tree_all_finite(dirty)
    chex.assert_trees_all_close(dirty, clean, rtol=1e-6, atol=1e-7)


def test_an_all_masked_batch_is_nothing(name):
    record = fill_masked(with_masks(make(name), jnp.zeros_like), REST)
    value, grads, metrics = compiled(name)(record)
    assert value == 0 and not any(np.any(g) for g in grads)
    chex.assert_tree_all_finite(metrics)


def test_masking_a_row_is_deleting_it(name):
    record = make(name)
    keep = np.array([0, 1, 3, 4, 6, 7])
    masked = with_masks(record, lambda mask: mask.at[np.array([2, 5])].set(False))
    value, grads, metrics = compiled(name)(masked)
    want_value, want_grads, want_metrics = compiled(name)(rows(record, keep))
    np.testing.assert_allclose(value, want_value, rtol=1e-6)
    chex.assert_trees_all_close(metrics, want_metrics, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close([g[keep] for g in grads], want_grads, rtol=1e-5, atol=1e-7)
    assert not any(np.any(g[np.array([2, 5])]) for g in grads)
    assert value != compiled(name)(record)[0]


def test_row_order_does_not_matter(name):
    record, order = make(name), np.random.default_rng(0).permutation(8)
    value, grads, metrics = compiled(name)(record)
    mixed = compiled(name)(rows(record, order))
    chex.assert_trees_all_close(mixed, (value, [g[order] for g in grads], metrics), rtol=1e-5, atol=1e-7)


def test_padding_does_not_matter(name):
    record = make(name)
    pad = lambda x: jnp.pad(x, ((0, 0), (2, 3), (0, 0))[: x.ndim]) if x.ndim > 1 else x  # noqa: E731
    wide = fill_masked(jax.tree.map(pad, record), REST)
    value, grads, metrics = compiled(name)(wide)
    cut = [g[:, 2:-3] if g.ndim > 1 else g for g in grads]
    chex.assert_trees_all_close((value, cut, metrics), compiled(name)(record), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "B, T", [(8, 8), (1, 1), *(pytest.param(*x, marks=pytest.mark.slow) for x in [(1, 8), (8, 1), (2, 8)])]
)
def test_rows_do_not_broadcast_into_each_other(name, B, T):
    """B == T and B == 1 hide a missing axis: the batch must equal its rows, each taken alone."""
    if couples_rows(name):
        pytest.skip("its rows know of each other")
    record = make(name, B, T)
    whole = loss(name)(record)
    parts = [loss(name)(rows(record, slice(i, i + 1))) for i in range(B)]
    together = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    chex.assert_trees_all_close(together, whole, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("pieces", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_microbatches_are_the_whole(name, pieces):
    record = make(name, seed=3)
    fn = loss(name)
    total = denominator(fn(record))
    value, grads, metrics = compiled(name)(record)
    parts = [rows(record, slice(i, i + 8 // pieces)) for i in range(0, 8, 8 // pieces)]
    pieced = jax.jit(lambda part, total: (*value_and_grad(fn, part, total), metric_sums(fn(part).metrics)))
    values, part_grads, sums = zip(*[pieced(part, total) for part in parts])
    if couples_rows(name):
        assert abs(sum(values) - value) > 1e-6, f"{name} is marked whole_batch, but is the sum of its microbatches"
        return
    np.testing.assert_allclose(sum(values), value, rtol=1e-6)
    joined = [jnp.concatenate(g) for g in zip(*part_grads)]
    chex.assert_trees_all_close(joined, grads, rtol=1e-6, atol=1e-8)
    added = jax.tree.map(lambda *x: sum(x), *sums)
    chex.assert_trees_all_close(metric_ratios(added), metrics, rtol=1e-5, atol=1e-6)


def test_eight_devices_are_one(name):
    record = make(name)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(record, NamedSharding(mesh, Spec("data")))
    assert len(jax.tree.leaves(spread)[0].sharding.device_set) == 8
    chex.assert_trees_all_close(compiled(name)(spread), compiled(name)(record), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1e3, -1e3])
def test_large_margins_stay_finite(name, size):
    """Every float array in turn is moved by +-1e3: log-ratios, margins and errors of that size."""
    leaves, tree = jax.tree.flatten(make(name))
    for i, leaf in enumerate(leaves):
        if is_float(leaf):
            moved = jax.tree.unflatten(tree, [leaf + size if j == i else x for j, x in enumerate(leaves)])
            chex.assert_tree_all_finite(compiled(name)(moved))


def test_weights_do_not_depend_on_floats(name):
    """Weights from lengths and masks only: then a step may take them before it knows the parameters."""
    record = make(name)
    other = map_floats(lambda x: 1.7 * x - 0.3, record)
    one, two = loss(name)(record), loss(name)(other)
    np.testing.assert_array_equal(one.weight, two.weight)
    assert one.metrics.keys() == two.metrics.keys()
    for key in one.metrics:
        np.testing.assert_array_equal(one.metrics[key][1], two.metrics[key][1])
    assert (one.weight >= 0).all() and one.weight.sum() > 0


def test_constants_get_no_gradient(name):
    """Old log-probabilities, references, advantages and returns are data."""
    record = make(name)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(record)]
    grads = dict(zip(names, compiled(name)(record)[1]))
    constant = ("ref_logp", "old_logp", "sampler_logp", "old_value", "advantage", "returns", "collision", "margin")
    constant += ("teacher_logits", "target")
    for key, grad in grads.items():
        if key.endswith(constant) or "mismatched" in key:
            assert not np.any(grad), key
    assert any(np.any(grad) for grad in grads.values())


def test_every_hyperparameter_changes_the_result_or_raises(name):
    fn, record = functools.partial(loss(name), **SHOWN.get(name, {})), make(name, B=64)  # many rows: rare cases occur
    before = value_and_grad(fn, record)
    for key, parameter in inspect.signature(fn).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        default = parameter.default
        assert isinstance(default, (float, str, bool, int)), f"{name}.{key}: how does one change a {type(default)}?"
        others = {bool: lambda x: [not x], str: lambda _: STRINGS, int: lambda count: [count + 1]}.get(type(default))
        others = others(default) if others else [REACHED.get((name, key), 1.5 * default + 0.05)]
        for other in (o for o in others if o != default):
            try:
                after = value_and_grad(functools.partial(fn, **{key: other}), record)
            except ValueError as error:
                assert repr(other) in str(error) and isinstance(default, str)
                continue
            assert abs(float(after[0] - before[0])) > 1e-5, f"{name}.{key} = {other} changes nothing"


def test_every_number_may_be_an_axis_of_a_sweep(name):
    """All of them traced in one jitted program, over rows of a table in which one has another value: value, gradient
    and metrics are those of the numbers one by one, as Python floats."""
    fn, record, hints = loss(name), make(name, B=4, T=4), typing.get_type_hints(loss(name))
    numbers = {key: p.default for key, p in inspect.signature(fn).parameters.items() if hints[key] == Scalar}
    if not numbers:
        pytest.skip("it has no number")

    def run(**row):
        once = functools.partial(fn, **row)
        return *value_and_grad(once, record), reduce_metrics(once(record).metrics)

    changed = [numbers | {key: numbers[key] + more} for key in numbers for more in (0.125, 0.25)]
    rows = [numbers, *changed]
    table = {key: jnp.float32([row[key] for row in rows]) for key in numbers}
    got = jax.jit(jax.vmap(lambda row: run(**row)))(table)
    want = jax.tree.map(lambda *x: np.stack(x), *[run(**row) for row in rows])
    chex.assert_trees_all_close(got, want, rtol=1e-6, atol=1e-6)


def test_nan_is_no_hyperparameter(name):
    """Every comparison with nan is False: a check must be of what is expected, not of what is wrong."""
    for key, parameter in inspect.signature(loss(name)).parameters.items():
        if isinstance(parameter.default, float):
            with pytest.raises(ValueError, match="= nan"):
                jax.eval_shape(functools.partial(loss(name), **{key: np.nan}), make(name))


def test_a_gradient_step_lowers_the_loss(name):
    if name in SURROGATES:
        pytest.skip("its gradient is not the slope of its value; test_identities_policy.py checks the gradient itself")
    record = make(name)
    value, grads, _ = compiled(name)(record)
    leaves, tree = jax.tree.flatten(record)
    step = 0.01 / jnp.sqrt(
        sum(jnp.sum(jnp.square(g)) for g in grads)
    )  # of one length: a small beta is not rounded away
    moved = [x - step * g.astype(x.dtype) if is_float(x) else x for x, g in zip(leaves, grads)]
    assert compiled(name)(jax.tree.unflatten(tree, moved))[0] < value
