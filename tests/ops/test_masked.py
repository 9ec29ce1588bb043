"""Masked reductions and the one reduction of a loss."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses

from alignax.ops import masked
from alignax.ops.checks import needs, require
from alignax.types import Loss, Rollout

# Two rows of three: the lanes that count are 1, 2 | 6.
X = np.array([[1.0, 2.0, 90.0], [90.0, 6.0, 90.0]], np.float32)
MASK = np.array([[True, True, False], [False, True, False]])


def loss_of(value, weight, metrics=None):
    return Loss(value=jnp.asarray(value), weight=jnp.asarray(weight, jnp.float32), metrics=metrics or {})


def test_values_on_a_small_example():
    x, mask = jnp.asarray(X), jnp.asarray(MASK)
    assert masked.masked_sum(x, mask) == 9  # 1 + 2 + 6
    assert masked.masked_mean(x, mask) == 3  # 9 / 3
    np.testing.assert_allclose(masked.masked_mean(x, mask, axis=1), [1.5, 6])
    np.testing.assert_allclose(masked.masked_mean(x, mask, axis=0), [1, 4, 0])  # nothing counts in the last column
    np.testing.assert_allclose(masked.masked_var(x, mask), 14 / 3)  # (4 + 1 + 9) / 3
    np.testing.assert_allclose(masked.masked_var(x, mask, ddof=1), 7)
    np.testing.assert_allclose(masked.masked_var(x, mask, axis=1), [0.25, 0])
    # mean 3, unbiased variance 7: (1 - 3) / sqrt 7, (2 - 3) / sqrt 7, (6 - 3) / sqrt 7
    white = np.array([[-2, -1, 0], [0, 3, 0]]) / np.sqrt(7)
    np.testing.assert_allclose(masked.whiten(x, mask), white, atol=1e-6)
    np.testing.assert_allclose(masked.whiten(x, mask, shift_mean=False), np.where(MASK, white + 3, 0), atol=1e-6)
    assert abs(float(masked.whiten(x, mask, eps=2.0)[1, 1]) - 1) < 1e-6  # 3 / sqrt(7 + 2)


@pytest.mark.parametrize("value", [0.1, -2.0794, 100.3])
def test_equal_lanes_are_at_their_mean(value):
    # their mean is off by a rounding, which 1 / sqrt(eps) = 1e4 would make an advantage of up to 1
    x, mask = jnp.full((64, 56), value, jnp.float32), jnp.arange(64 * 56).reshape(64, 56) % 3 > 0
    np.testing.assert_array_equal(masked.whiten(x, mask), 0)
    np.testing.assert_allclose(masked.whiten(x, mask, shift_mean=False), jnp.where(mask, value, 0), rtol=1e-5)


FUNCTIONS = {
    "sum": masked.masked_sum,
    "mean": masked.masked_mean,
    "mean of rows": lambda x, m: masked.masked_mean(x, m, axis=1).sum(),
    "var": masked.masked_var,
    "whiten": lambda x, m: jnp.sum(masked.whiten(x, m) ** 3),
    "whiten, no shift": lambda x, m: jnp.sum(masked.whiten(x, m, shift_mean=False) ** 3),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (4, 4), (5, 1)])
def test_masked_lanes_reach_neither_value_nor_gradient(name, shape):
    rng = np.random.default_rng(0)
    x, mask = rng.normal(size=shape).astype(np.float32), rng.random(shape) < 0.6
    for keep in (mask, np.zeros(shape, bool)):
        clean, dirty = np.where(keep, x, 0), np.where(keep, x, np.resize([np.nan, np.inf, -np.inf], shape))
        both = [
            jax.value_and_grad(FUNCTIONS[name])(jnp.asarray(a, jnp.float32), jnp.asarray(keep)) for a in (clean, dirty)
        ]
        chex.assert_tree_all_finite(both[1])
        chex.assert_trees_all_close(*both, rtol=1e-6)
        assert not np.any(np.where(keep, 0, both[1][1]))


def test_sums_are_float32_and_stay_accurate_in_bfloat16():
    ones = jnp.ones((8, 1024), jnp.bfloat16)  # a bfloat16 sum would stop growing at 256
    mean = masked.masked_sum(ones, jnp.ones(ones.shape, bool))
    assert mean.dtype == jnp.float32 and mean == 8192


def test_reduce_by_hand():
    # (1 * 1 + 2 * 3) / (1 + 3); the nan has weight 0
    loss = loss_of([1.0, 2.0, np.nan], [1.0, 3.0, 0.0])
    assert masked.reduce(loss) == 1.75
    assert masked.denominator(loss) == 4
    assert masked.reduce(loss, jnp.float32(14.0)) == 0.5
    assert masked.reduce(loss_of([1.0, np.inf], [0.0, 0.0])) == 0


def test_reduce_has_a_finite_gradient_and_none_through_the_weights():
    grad = jax.grad(lambda v: masked.reduce(loss_of(v, jnp.array([1.0, 0.0]))))(jnp.array([2.0, jnp.nan]))
    np.testing.assert_array_equal(grad, [1, 0])
    through = jax.grad(lambda w: masked.reduce(loss_of(jnp.array([1.0, 2.0]), w)))(jnp.array([1.0, 1.0]))
    np.testing.assert_array_equal(through, [0, 0])
    nothing = jax.grad(lambda v: masked.reduce(loss_of(v, jnp.zeros(2))))(jnp.array([2.0, jnp.nan]))
    np.testing.assert_array_equal(nothing, [0, 0])


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_microbatches_add_up_where_a_mean_of_means_would_not(pieces):
    rng = np.random.default_rng(1)
    value, weight = rng.normal(size=(8, 5)).astype(np.float32), rng.random((8, 5)) < rng.random((8, 1))
    whole = loss_of(value, weight, {"a/b": (jnp.asarray(value) ** 2, jnp.asarray(weight, jnp.float32))})
    total = masked.denominator(whole)
    parts = [jax.tree.map(lambda x, i=i: x.reshape(pieces, -1, 5)[i], whole) for i in range(pieces)]
    np.testing.assert_allclose(sum(masked.reduce(part, total) for part in parts), masked.reduce(whole), rtol=1e-6)
    sums = jax.tree.map(lambda *x: sum(x), *[masked.metric_sums(part.metrics) for part in parts])
    chex.assert_trees_all_close(masked.metric_ratios(sums), masked.reduce_metrics(whole.metrics), rtol=1e-6)
    np.testing.assert_allclose(masked.metric_ratios(sums)["a/b"], (value**2)[weight].mean(), rtol=1e-6)
    if pieces > 1:
        assert abs(np.mean([masked.reduce(part) for part in parts]) - masked.reduce(whole)) > 1e-3


def test_whole_batch_denominators_cost_no_forward_pass():
    """What the module's docstring promises: under jit, asking for the weights only prunes the model."""

    @jax.jit
    def total(x, w, mask):
        return masked.denominator(loss_of(jnp.tanh(x @ w) @ w, mask))

    args = jnp.ones((64, 128)), jnp.ones((128, 128)), jnp.ones((64, 128), bool)
    text = total.lower(*args).compile().as_text()
    assert "dot(" not in text and "custom-call" not in text and "tanh" not in text


def test_require_and_needs():
    with pytest.raises(ValueError, match="no good"):
        require(False, "no good")
    jax.jit(lambda x: require(x > 0, "traced") or x)(jnp.float32(-1))  # cannot be known while tracing
    rollout = Rollout(
        tokens=jnp.zeros((1, 2), int),
        valid=jnp.ones((1, 2), bool),
        mask=jnp.ones((1, 2), bool),
        old_logp=jnp.zeros((1, 2)),
    )
    with refuses(ValueError, "Rollout.logp, Rollout.value is None", "fill"):
        needs(rollout, "old_logp", "logp", "value")
    assert needs(rollout, "old_logp")[0] is rollout.old_logp
