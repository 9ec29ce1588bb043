"""Rewards made of other rewards: (their numbers [K B], *, settings) -> one number for each reply, on the device.

A config names one under `rewards`, with the names of those that it is `of`, which are logged by themselves and often
have the weight 0: rewards = dict(a=..., b=..., both=dict(function="alignax.rewards.combine:minimum", of=("a", "b"))).
A reply that one of them cannot score (nan) has no score in what is made of them.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from alignax.ops.checks import Scalar, require


def mean(values_KB: Float[Array, "K B"]) -> Float[Array, " B"]:
    """The mean of an ensemble (Coste et al. 2024, "Reward Model Ensembles Help Mitigate Overoptimization", 2310.02743,
    equation 3)."""
    return jnp.mean(values_KB, axis=0)


def minimum(values_KB: Float[Array, "K B"]) -> Float[Array, " B"]:
    """The least of an ensemble: worst-case optimization (Coste et al. 2024, 2310.02743, equation 4)."""
    return jnp.min(values_KB, axis=0)


def mean_less_variance(values_KB: Float[Array, "K B"], *, coef: Scalar = 0.5) -> Float[Array, " B"]:
    """mean - coef * variance over the members: uncertainty-weighted optimization (Coste et al. 2024, 2310.02743,
    equation 5, where coef is 0.5 for best-of-n and 0.1 for PPO).

    Raises ValueError if coef is negative.
    """
    require(coef >= 0, f"mean_less_variance: coef = {coef}: expected 0 (the mean) or more, such as 0.1")
    return jnp.mean(values_KB, axis=0) - coef * jnp.var(values_KB, axis=0)


def mean_less_std(values_KB: Float[Array, "K B"], *, coef: Scalar = 1.0) -> Float[Array, " B"]:
    """mean - coef * standard deviation over the members: a lower confidence bound.

    Raises ValueError if coef is negative.
    """
    require(coef >= 0, f"mean_less_std: coef = {coef}: expected 0 (the mean) or more, such as 1.0")
    return jnp.mean(values_KB, axis=0) - coef * jnp.std(values_KB, axis=0)


def gated(values_KB: Float[Array, "K B"], *, least: Scalar = 0.0, otherwise: Scalar = -1.0) -> Float[Array, " B"]:
    """The first reward where all others are `least` or more, else the number `otherwise`: a condition, not a price."""
    first_B, others_KB = values_KB[0], values_KB[1:]
    known_B = jnp.isfinite(values_KB).all(axis=0)
    return jnp.where(known_B, jnp.where((others_KB >= least).all(axis=0), first_B, otherwise), jnp.nan)


def squashed(values_KB: Float[Array, "K B"], *, centre: Scalar = 0.0, scale: Scalar = 1.0) -> Float[Array, " B"]:
    """sigmoid((r - centre) / scale) of the mean of its rewards: bounded, and steepest at the centre.

    The centre is one number for all prompts; PAR, which takes it from a reference's replies to each, is
    `rewards.shaping.preference`. Raises ValueError unless scale > 0.
    """
    require(scale > 0, f"squashed: scale = {scale}: expected a positive number, such as 1.0")
    return jax.nn.sigmoid((jnp.mean(values_KB, axis=0) - centre) / scale)
