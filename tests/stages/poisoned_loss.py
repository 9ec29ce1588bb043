"""A loss outside the package, by dotted path: SFT's, but nan for replies of more than `limit` tokens."""

import jax.numpy as jnp

from alignax.losses.sft import sft
from alignax.types import Demo, Loss


def poisoned(demo: Demo, *, limit: int) -> Loss:
    loss = sft(demo)
    too_long_B1 = demo.mask.sum(1, keepdims=True) > limit
    return Loss(value=jnp.where(too_long_B1, jnp.nan, loss.value), weight=loss.weight, metrics=loss.metrics)
