"""Truncated sampling: top-k and top-p as filters on logits, with traced settings: a new value does not recompile."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


def top_k(logits_BV: Float[Array, "B V"], k: Int[Array, ""] | int) -> Float[Array, "B V"]:
    """Keeps the k largest logits of each row (ties of the k-th are kept); k <= 0 keeps all."""
    V = logits_BV.shape[-1]
    ordered_BV = jnp.sort(logits_BV, axis=-1)
    kth_B1 = jnp.take(ordered_BV, jnp.clip(V - k, 0, V - 1), axis=-1)[:, None]
    return jnp.where((logits_BV >= kth_B1) | (jnp.asarray(k) <= 0), logits_BV, -jnp.inf)


def top_p(logits_BV: Float[Array, "B V"], p: Float[Array, ""] | float) -> Float[Array, "B V"]:
    """Keeps the smallest set of most probable tokens whose mass reaches p, at least one (Holtzman et al. 2020)."""
    ordered_BV = -jnp.sort(-logits_BV, axis=-1)
    prob_BV = jax.nn.softmax(ordered_BV, axis=-1)
    before_BV = jnp.cumsum(prob_BV, axis=-1) - prob_BV  # mass of the strictly more probable tokens
    least_B1 = jnp.where(before_BV < p, ordered_BV, jnp.inf).min(-1, keepdims=True)
    least_B1 = jnp.minimum(least_B1, ordered_BV[:, :1])  # p = 0 still keeps the most probable one
    return jnp.where((logits_BV >= least_B1) | (jnp.asarray(p) >= 1.0), logits_BV, -jnp.inf)
