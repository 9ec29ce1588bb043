"""Parts of an online run from outside the package, by dotted path."""

import jax.numpy as jnp
from jax import Array

from alignax.ops.checks import require
from alignax.worlds.gold import gold


def partial_gold(row: dict, completion: str, *, finished: bool) -> dict | None:
    """Gold, but None for replies of an odd number of letters."""
    return None if len(completion) % 2 else gold(row, completion, finished=finished)


def small_batches(coef: Array, kl: Array, *, batch_size: int, most: int) -> Array:
    """The coefficient as it is, where an iteration has `most` episodes or fewer."""
    require(batch_size <= most, f"batch_size = {batch_size}: expected {most} or fewer")
    return jnp.asarray(coef, jnp.float32)
