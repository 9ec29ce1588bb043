"""Random inputs for every record that a loss may take, and the list of all losses: what the battery runs on."""

import importlib
import pkgutil
import typing

import jax
import jax.numpy as jnp
import numpy as np

import alignax.losses
from alignax.ops.masked import reduce
from alignax.types import Demo, Distill, Pair, Ranked, Rated, Record, Rollout, Scored, Side, Stepwise, Unpaired

NAMES = [info.name for info in pkgutil.iter_modules(alignax.losses.__path__)]


# Losses that hold part of their value constant: by definition their gradient is not the slope of the value, so finite
# differences say nothing of it. Their gradients have oracles of their own.
SURROGATES = ("cispo", "gspo_token", "kl", "vespo")


def loss(name):
    """The public function of losses/<name>.py."""
    return getattr(importlib.import_module(f"alignax.losses.{name}"), name)


def lengths_mask(rng, B, T):
    """Completions of unequal length, at least one token each, not at position 0 unless there is no other."""
    if T == 1:
        return np.ones((B, 1), bool)
    start = rng.integers(1, max(T // 2, 2), size=(B, 1))
    stop = start + rng.integers(1, T // 2 + 1, size=(B, 1))
    at = np.arange(T)[None]
    return (start <= at) & (at < stop)


def label(x):
    """A test's name for a loss, bound arguments included, without the address in memory that `str` would show."""
    bound = getattr(x, "keywords", {})
    return "-".join([getattr(getattr(x, "func", x), "__name__", str(x)), *(f"{k}={v}" for k, v in bound.items())])


def f32(x):
    return jnp.asarray(x, jnp.float32)


def demo(rng, B, T):
    logp, entropy = -rng.exponential(size=(B, T)), rng.exponential(size=(B, T))
    mask = jnp.asarray(lengths_mask(rng, B, T))
    return Demo(logp=f32(logp), mask=mask, entropy=f32(entropy), correct=jnp.asarray(rng.random((B, T)) < 0.5))


def side(rng, B, T):
    logp = -rng.exponential(size=(B, T))
    mask = jnp.asarray(lengths_mask(rng, B, T))
    collision = -rng.exponential(size=(B, T))
    return Side(logp=f32(logp), ref_logp=f32(logp + rng.normal(size=(B, T))), mask=mask, collision=f32(collision))


def pair(rng, B, T):
    reference_is_chosen = jnp.asarray(np.arange(B) % 3 == 1)
    return Pair(chosen=side(rng, B, T), rejected=side(rng, B, T), reference_is_chosen=reference_is_chosen)


def unpaired(rng, B, T):
    desirable = jnp.asarray(np.arange(B) % 3 != 1)  # both kinds wherever there are two rows
    replies, mismatched = side(rng, B, T), side(rng, B, T)
    mismatched = mismatched.replace(
        ref_logp=mismatched.logp - 0.3
    )  # a KL above 0: an estimate cut at 0 has no gradient
    return Unpaired(side=replies, desirable=desirable, mismatched=mismatched)


def scored(rng, B, T):
    del T
    margin, tie = f32(rng.exponential(size=B)), jnp.asarray(np.arange(B) % 4 == 3)
    normal = lambda: f32(rng.normal(size=B))  # noqa: E731
    return Scored(chosen=normal(), rejected=normal(), mask=jnp.ones(B, bool), margin=margin, tie=tie)


def ranked(rng, B, T):
    lengths = np.minimum(T, rng.integers(2, T + 2, (B, 1)))  # rankings of unequal length
    return Ranked(score=f32(rng.normal(size=(B, T))), mask=jnp.asarray(np.arange(T)[None] < lengths))


def rated(rng, B, T):
    mask = jnp.asarray(np.arange(B * T).reshape(B, T) % 5 != 4)
    return Rated(score=f32(rng.normal(size=(B, T))), target=f32(rng.integers(0, 5, (B, T))), mask=mask)


def stepwise(rng, B, T):
    mask = jnp.asarray(lengths_mask(rng, B, T))
    return Stepwise(logit=f32(rng.normal(size=(B, T))), target=f32(rng.integers(0, 2, (B, T))), mask=mask)


def distill(rng, B, T):
    logits, teacher = rng.normal(size=(2, B, T, 5))
    mask = jnp.asarray(lengths_mask(rng, B, T))
    return Distill(logits=f32(logits), teacher_logits=f32(teacher), mask=mask)


def rollout(rng, B, T):
    old_logp, mask = -rng.exponential(size=(B, T)), jnp.asarray(lengths_mask(rng, B, T))
    old_value = rng.normal(size=(B, T))
    noise = lambda scale: f32(scale * rng.normal(size=(B, T)))  # noqa: E731
    return Rollout(
        tokens=jnp.asarray(rng.integers(0, 50, (B, T)), jnp.int32),
        valid=jnp.ones((B, T), bool),
        mask=mask,
        old_logp=f32(old_logp),
        logp=f32(old_logp) + noise(0.3),  # ratios on both sides of the clip range
        ref_logp=f32(old_logp) + noise(0.5),
        entropy=f32(rng.exponential(size=(B, T))),
        value=f32(old_value) + noise(0.3),
        old_value=f32(old_value),
        advantage=noise(1.0),
        returns=f32(old_value) + noise(0.5),
        sampler_logp=f32(old_logp) + noise(0.1),
    )


MAKERS = {
    Demo: demo,
    Distill: distill,
    Pair: pair,
    Ranked: ranked,
    Rated: rated,
    Rollout: rollout,
    Scored: scored,
    Stepwise: stepwise,
    Unpaired: unpaired,
}


def record_type(name):
    """The type of the first parameter: what tells the stage, and this battery, what to feed."""
    fn = loss(name)
    kind = typing.get_type_hints(fn)[next(iter(fn.__annotations__))]
    assert kind in MAKERS, f"losses/{name}.py takes a {kind}: add a maker of random ones to {__file__}"
    return kind


def make(name, B=8, T=8, seed=0):
    return MAKERS[record_type(name)](np.random.default_rng(seed), B, T)


def is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def map_floats(f, record):
    return jax.tree.map(lambda x: f(x) if is_float(x) else x, record)


def with_masks(record, f):
    """The record with f applied to every `mask`, and `f` told nothing else."""
    fields = {k: v for k, v in vars(record).items() if v is not None}
    inner = {k: with_masks(v, f) for k, v in fields.items() if isinstance(v, Record)}
    mask = {"mask": f(record.mask)} if "mask" in fields else {}
    return type(record)(**{**fields, **inner, **mask})


def fill_masked(record, filler):
    """The record with every float lane outside its mask replaced by `filler` (an array-like that is repeated)."""

    def fill(value):
        if isinstance(value, Record):
            return fill_masked(value, filler)
        if not is_float(value):
            return value
        mask = jnp.expand_dims(record.mask, range(record.mask.ndim, value.ndim))
        return jnp.where(mask, value, jnp.resize(jnp.asarray(filler, value.dtype), value.shape))

    return type(record)(**{k: fill(v) for k, v in vars(record).items() if v is not None})


def value_and_grad(fn, record, denominator=None):
    """(reduced loss, gradient with respect to every float array of the record, in the record's tree)."""
    leaves, tree = jax.tree.flatten(record)
    at = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

    def scalar(floats):
        full = list(leaves)
        for i, leaf in zip(at, floats):
            full[i] = leaf
        return reduce(fn(jax.tree.unflatten(tree, full)), denominator)

    value, grads = jax.value_and_grad(scalar)([leaves[i] for i in at])
    zeros = [jnp.zeros(leaf.shape, jnp.float32) for leaf in leaves]
    for i, grad in zip(at, grads):
        zeros[i] = grad
    return value, zeros
