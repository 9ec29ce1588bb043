"""Exponentials of log-ratios that stay finite, and keep a useful gradient, however far two policies drift apart."""

import math

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

# e^20 = 4.9e8: far beyond any ratio that trains, and its square still fits float32, so the gradient's norm is finite.
CAP = 20.0


def exp_linear(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """e^x up to x = 20, its tangent beyond. A clamp is finite too, but its gradient is 0 where it is needed most."""
    return jnp.exp(jnp.minimum(x, CAP)) + math.exp(CAP) * jnp.maximum(x - CAP, 0.0)


def expm1_linear(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """e^x - 1 up to x = 20, accurate near 0; its tangent beyond."""
    return jnp.expm1(jnp.minimum(x, CAP)) + math.exp(CAP) * jnp.maximum(x - CAP, 0.0)
