"""Records: an axis has one size wherever it is named, and what JAX rebuilds of a record passes."""

import jax
import jax.numpy as jnp
import pytest
from errors import refuses

from alignax.train.optimizer import sgd
from alignax.train.state import new_state
from alignax.types import Distill, Loss, Pair, Rollout, Scored, Side, Unpaired


def side(B=2, T=3, mask=None, ref=None):
    return Side(logp=jnp.zeros((B, T)), mask=jnp.ones(mask or (B, T), bool), ref_logp=jnp.zeros(ref or (B, T)))


@pytest.mark.parametrize(
    "make, key, word",
    [
        (lambda: side(mask=(2, 1)), "Side: the axis T of mask (2, 1) is 1", "logp is 3"),
        (lambda: side(ref=(1, 3)), "Side: the axis B of ref_logp (1, 3) is 1", "logp is 2"),
        (lambda: side(T=2, mask=(2,)), "Side.mask has the shape (2,)", "[B T]"),
        (lambda: Pair(chosen=side(2), rejected=side(3)), "Pair: the axis B", "rejected.mask has 3"),
        (lambda: Unpaired(side=side(2), desirable=jnp.ones(3, bool)), "Unpaired: the axis B", "side.mask has 2"),
        (
            lambda: Scored(chosen=jnp.zeros(2), rejected=jnp.zeros(3), mask=jnp.ones(2, bool)),
            "Scored: the axis B of rejected (3,) is 3",
            "chosen is 2",
        ),
        (
            lambda: Distill(
                logits=jnp.zeros((2, 3, 5)), teacher_logits=jnp.zeros((2, 3, 4)), mask=jnp.ones((2, 3), bool)
            ),
            "Distill: the axis V of teacher_logits (2, 3, 4) is 4",
            "logits is 5",
        ),
    ],
)
def test_an_axis_of_two_sizes_is_named(make, key, word):
    with refuses(ValueError, key, word):
        make()


def test_a_sweep_over_some_fields_passes():
    """Where only some fields get an axis more, JAX rebuilds the record with it: vmap's in_axes and out_axes do."""
    leaves, tree = jax.tree.flatten(side())
    rebuilt = jax.tree.unflatten(tree, [jnp.stack([leaves[0]] * 4), *leaves[1:]])
    assert rebuilt.logp.shape == (4, 2, 3) and rebuilt.mask.shape == (2, 3)
    with refuses(ValueError, "Side", "axis B of ref_logp"):
        jax.tree.unflatten(tree, [*leaves[:2], leaves[2][:1]])
    state = new_state({"a": jnp.ones(2)}, sgd(learning_rate=0.1, total_steps=1))
    leaves, tree = jax.tree.flatten(state)
    jax.tree.unflatten(tree, [jnp.stack([leaf] * 3) if leaf.ndim == 0 else leaf for leaf in leaves])


def test_a_loss_whose_weight_would_broadcast_is_refused():
    with refuses(ValueError, "Loss: value", "(4, 3)", "(4, 1)"):
        Loss(value=jnp.ones((4, 3)), weight=jnp.ones((4, 1)), metrics={})
    with refuses(ValueError, "Loss: accuracy", "(4,)", "(3,)"):
        Loss(value=jnp.ones(4), weight=jnp.ones(4), metrics={"accuracy": (jnp.ones(4), jnp.ones(3))})


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
    groups = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), rollout.replace(source=jnp.ones(4, jnp.int32)))
    assert groups.source.shape == (2, 2)
