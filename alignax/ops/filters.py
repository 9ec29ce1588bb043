"""Truncated sampling: top-k, top-p and min-p as filters on logits, by row, with traced settings.

None of them sorts. The last logit that a filter keeps is found bit by bit: floats that are read as integers keep their
order, so 32 passes over the row settle its 32 bits, exactly, many times as fast as a sort on a CPU
(benchmarks/sampling.py). Where no row asks for a filter, it costs nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, UInt


def top_k(logits_BV: Float[Array, "B V"], k: Int[Array, "*B"] | int) -> Float[Array, "B V"]:
    """Keeps the k largest logits of each row (ties of the k-th are kept); k <= 0 keeps all."""
    k_B = jnp.broadcast_to(k, logits_BV.shape[:1])
    on_B = (k_B > 0) & (k_B < logits_BV.shape[-1])
    return _keep(logits_BV, on_B, lambda: lambda kept_BV: jnp.sum(kept_BV, axis=-1) >= k_B)


def top_p(logits_BV: Float[Array, "B V"], p: Float[Array, "*B"] | float) -> Float[Array, "B V"]:
    """Keeps the smallest set of most probable tokens whose mass reaches p, at least one (Holtzman et al. 2020)."""
    p_B = jnp.broadcast_to(jnp.asarray(p, jnp.float32), logits_BV.shape[:1])

    def enough() -> Callable[[Array], Array]:
        mass_BV = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
        wanted_B = jnp.maximum(p_B, 1e-9) * jnp.sum(mass_BV, axis=-1)  # p = 0 still keeps the most probable one
        return lambda kept_BV: jnp.sum(mass_BV, axis=-1, where=kept_BV) >= wanted_B

    return _keep(logits_BV, p_B < 1, enough)


def min_p(logits_BV: Float[Array, "B V"], p: Float[Array, "*B"] | float) -> Float[Array, "B V"]:
    """Keeps the tokens of at least p times the largest probability (Nguyen et al. 2024, 2407.01082); p <= 0: all."""
    p_B = jnp.broadcast_to(jnp.asarray(p, jnp.float32), logits_BV.shape[:1])
    least_B = jnp.max(logits_BV, axis=-1) + jnp.where(p_B > 0, jnp.log(p_B), -jnp.inf)
    return jnp.where(logits_BV >= least_B[:, None], logits_BV, -jnp.inf)


# of FILTERS, by name: a number for all rows, or one for each; None and what is absent is off
Settings = Mapping[str, Any]
FILTERS = {"top_k": top_k, "top_p": top_p, "min_p": min_p}  # in the order in which they act


def filtered(logits_BV: Float[Array, "B V"], settings: Settings) -> Float[Array, "B V"]:
    """The logits after the filters of FILTERS that have a setting: for the sampler and for who learns from it."""
    for name, keep in FILTERS.items():
        if settings.get(name) is not None:
            logits_BV = keep(logits_BV, settings[name])
    return logits_BV


def _ordered(x: Float[Array, "B V"]) -> UInt[Array, "B V"]:
    """Whole numbers in the order of the floats."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _keep(
    logits_BV: Float[Array, "B V"], on_B: Bool[Array, " B"], enough: Callable[[], Callable[[Array], Array]]
) -> Float[Array, "B V"]:
    """The logits from the largest one on for which those that are kept are enough, in the rows where the filter is on.

    `enough()` says of what is kept [B V] whether it is [B]; it is made only where some row asks.
    """

    def kept() -> Array:
        order_BV, fits = _ordered(logits_BV), enough()

        def settle(i: Array, least_B: Array) -> Array:
            tried_B = least_B | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
            return jnp.where(fits(order_BV >= tried_B[:, None]), tried_B, least_B)

        least_B = jax.lax.fori_loop(0, 32, settle, jnp.zeros(len(on_B), jnp.uint32))
        return jnp.where((order_BV >= least_B[:, None]) | ~on_B[:, None], logits_BV, -jnp.inf)

    return jax.lax.cond(on_B.any(), kept, lambda: logits_BV)
