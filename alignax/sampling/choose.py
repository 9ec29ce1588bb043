"""One token of each row: drawn by the inverse of the cumulative distribution, in two steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

BLOCK = 128  # columns of the vocabulary that are summed first


class Choice(NamedTuple):
    """A token of each row."""

    token: Int[Array, " B"]
    logp: Float[Array, " B"]  # under the distribution of these logits, nats


def choose(logits_BV: Float[Array, "B V"], noise_B2: Float[Array, "B 2"], greedy_B: Bool[Array, " B"]) -> Choice:
    """A token with probability softmax(logits); the most probable one where `greedy`.

    The mass of blocks of 128 tokens is summed, a block is drawn by the first of two numbers in [0, 1), and a token
    inside of it by the second. This is exact, up to a resolution of 2^-24 in each step, and reads the logits once,
    where adding Gumbel noise and taking the maximum needs V random numbers for each row. A token without mass is never
    drawn.
    """
    B, V = logits_BV.shape
    wide = jnp.pad(logits_BV, ((0, 0), (0, -V % BLOCK)), constant_values=-jnp.inf).reshape(B, -1, BLOCK)
    peak_Bn = jnp.max(wide, axis=-1)
    peak_B1 = jnp.max(peak_Bn, axis=-1, keepdims=True)
    mass_Bn = jnp.sum(jnp.exp(wide - peak_B1[..., None]), axis=-1)
    block_B = jnp.where(greedy_B, jnp.argmax(peak_Bn, axis=-1), inverse(mass_Bn, noise_B2[:, 0]))
    inside_BW = jnp.take_along_axis(wide, block_B[:, None, None], axis=1)[:, 0]
    place_B = inverse(jnp.exp(inside_BW - peak_B1), noise_B2[:, 1])
    place_B = jnp.where(greedy_B, jnp.argmax(inside_BW, axis=-1), place_B)
    chosen_B = jnp.take_along_axis(inside_BW, place_B[:, None], axis=1)[:, 0]
    logp_B = chosen_B - peak_B1[:, 0] - jnp.log(jnp.sum(mass_Bn, axis=-1))
    return Choice((block_B * BLOCK + place_B).astype(jnp.int32), logp_B)


def inverse(mass_BN: Float[Array, "B N"], noise_B: Float[Array, " B"]) -> Int[Array, " B"]:
    """The first place whose cumulative mass is above `noise` of the whole: it has mass of its own."""
    below_BN = jnp.cumsum(mass_BN, axis=-1)
    total_B1 = below_BN[:, -1:]
    wanted_B1 = jnp.minimum(noise_B[:, None] * total_B1, jnp.nextafter(total_B1, jnp.zeros_like(total_B1)))
    return jnp.minimum(jnp.sum(below_BN <= wanted_B1, axis=-1), mass_BN.shape[-1] - 1)


def noise(keys_B: Array, t_B: Int[Array, " B"]) -> Float[Array, "B 2"]:
    """The numbers in [0, 1) of each row's token t: of its own key and place, whatever its neighbours are."""
    return jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t), (2,)))(keys_B, t_B)


def entropy(logits_BV: Float[Array, "B V"]) -> Float[Array, " B"]:
    """Entropy of softmax(logits), nats; tokens without mass have no part in it."""
    logp_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    return -jnp.sum(jnp.exp(logp_BV) * logp_BV, axis=-1, where=jnp.isfinite(logp_BV))
