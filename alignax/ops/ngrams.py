"""How varied texts are: runs of n tokens, counted by a hash of 32 bits (two of N runs collide with N^2 / 2^33)."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, UInt32

NONE = jnp.uint32(0xFFFFFFFF)  # the place of a run that is not there, behind all others


def hashed(tokens_BT: Int[Array, "B T"], mask_BT: Bool[Array, "B T"], n: int) -> UInt32[Array, "B R"]:
    """A number for the run of n tokens that begins at each place; NONE where the mask leaves a part of it out."""
    count = max(tokens_BT.shape[1] - n + 1, 0)
    hash_BR, there_BR = (
        jnp.full((len(tokens_BT), count), 2166136261, jnp.uint32),
        jnp.ones((len(tokens_BT), count), bool),
    )
    for i in range(n):
        token_BR = tokens_BT[:, i : i + count].astype(jnp.uint32)
        mixed_BR = (token_BR + 1) * jnp.uint32(0x9E3779B1)
        hash_BR = ((hash_BR << 5) | (hash_BR >> 27)) ^ (mixed_BR ^ (mixed_BR >> 15))
        hash_BR = hash_BR * jnp.uint32(0x85EBCA6B)
        there_BR &= mask_BT[:, i : i + count]
    return jnp.where(there_BR, jnp.minimum(hash_BR, NONE - 1), NONE)


def distinct(hash_BR: UInt32[Array, "B R"]) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """(different runs, runs) of each row, of those that are there."""
    sorted_BR = jnp.sort(hash_BR, axis=1)
    there_BR = sorted_BR != NONE
    first_BR = jnp.concatenate([there_BR[:, :1], sorted_BR[:, 1:] != sorted_BR[:, :-1]], axis=1)
    count = lambda x: jnp.sum(x, axis=1, dtype=jnp.float32)  # noqa: E731
    return count(first_BR & there_BR), count(there_BR)
