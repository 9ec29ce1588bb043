"""Records: an axis has one size wherever it is named, and what JAX rebuilds of a record passes."""

import jax
import jax.numpy as jnp
import pytest

from alignax.types import Distill, Pair, Rollout, Scored, Side, Unpaired


def side(B=2, T=3, mask=None, ref=None):
    return Side(logp=jnp.zeros((B, T)), mask=jnp.ones(mask or (B, T), bool), ref_logp=jnp.zeros(ref or (B, T)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: side(mask=(2, 1)), r"Side: the axis T of mask \(2, 1\) is 1, that of logp is 3"),
        (lambda: side(ref=(1, 3)), r"Side: the axis B of ref_logp \(1, 3\) is 1, that of logp is 2"),
        (lambda: side(T=2, mask=(2,)), r"Side.mask has the shape \(2,\): expected \[B T\]"),
        (lambda: Pair(chosen=side(2), rejected=side(3)), "Pair: the axis B differs: chosen.mask has 2, rejected.mask"),
        (lambda: Unpaired(side=side(2), desirable=jnp.ones(3, bool)), "Unpaired: the axis B differs: side.mask has 2"),
        (
            lambda: Scored(chosen=jnp.zeros(2), rejected=jnp.zeros(3), mask=jnp.ones(2, bool)),
            r"Scored: the axis B of rejected \(3,\) is 3, that of chosen is 2",
        ),
        (
            lambda: Distill(
                logits=jnp.zeros((2, 3, 5)), teacher_logits=jnp.zeros((2, 3, 4)), mask=jnp.ones((2, 3), bool)
            ),
            r"Distill: the axis V of teacher_logits \(2, 3, 4\) is 4, that of logits is 5",
        ),
    ],
)
def test_an_axis_of_two_sizes_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_jax_makes_of_records_passes():
    pair = Pair(chosen=side(2, 3), rejected=side(2, 4), reference_is_chosen=jnp.ones(2, bool))
    stacked = jax.tree.map(lambda x: jnp.stack([x, x, x]), pair)
    assert jax.vmap(lambda one: one.chosen.logp.sum())(stacked).shape == (3,)
    for rebuild in (jnp.ravel, jnp.sum, lambda x: x.sum(-1), lambda x: x.shape, lambda x: None, jnp.ndim):
        jax.tree.map(rebuild, pair)
    shapes = jax.eval_shape(lambda: pair)
    assert shapes.chosen.logp.shape == (2, 3)
    ones = jnp.ones((4, 3), bool)
    rollout = Rollout(tokens=jnp.zeros((4, 3), jnp.int32), valid=ones, mask=ones, old_logp=jnp.zeros((4, 3)))
    groups = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), rollout.replace(opponent=jnp.ones(4, bool)))
    assert groups.opponent.shape == (2, 2)
