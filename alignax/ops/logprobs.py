"""Log-probability, entropy, collision and accuracy of tokens from hidden states, without all the logits at once.

The vocabulary is walked in chunks: the forward pass keeps a running maximum, sum and first moment per token (an online
logsumexp), the backward pass computes the logits of each chunk again. So temporary memory grows with tokens * chunk and
not with tokens * V. A vocabulary of one chunk takes the plain path: no loop, and the logits are kept for the gradient.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

# The logit of a column that is not in the vocabulary. Finite, so that 0 * OUTSIDE is 0 where -inf would give nan.
OUTSIDE = -1e30


class TokenStats(NamedTuple):
    """What the losses and metrics want to know of each target token."""

    logp: Float[Array, "*B"]  # log p(target), nats
    entropy: Float[Array, "*B"]  # of the distribution that the target was predicted from, nats
    correct: Bool[Array, "*B"]  # no token is more probable than the target
    collision: Float[Array, "*B"]  # log sum_v p(v)^2: the expected p of a sampled token, as a log; gets no gradient


def token_stats(
    hidden: Float[Array, "*B D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "*B"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    vocab_size: int,
    chunk: int = 8192,
) -> TokenStats:
    """Statistics of targets[i] under p_i = softmax(hidden[i] @ kernel / temperature); the caller has aligned the two.

    Columns at or beyond `vocab_size` are padding of the vocabulary and get no probability (a target there has the
    log-probability of about -1e30). Products accumulate in float32 and the results are float32, whatever the inputs;
    gradients come back in the dtypes of the inputs. With l the tempered logits and H the entropy,

        d logp / d l_j = 1[j = target] - p_j,        d H / d l_j = -p_j (log p_j + H).

    Differentiable (reverse mode) with respect to hidden and kernel; `temperature` may be traced but gets no gradient.
    `chunk` is the number of vocabulary columns whose logits exist at once.

    Raises ValueError if vocab_size is not in 1..V or chunk is not positive.
    """
    width = kernel.shape[1]
    if not 0 < vocab_size <= width:
        raise ValueError(f"vocab_size = {vocab_size}: expected 1 to {width}, the number of columns of the kernel")
    if chunk < 1:
        raise ValueError(f"chunk = {chunk}: expected a positive number of vocabulary columns, such as 8192")
    targets, temperature = targets.astype(jnp.int32), jnp.asarray(temperature, jnp.float32)
    return _stats(hidden, kernel, targets, temperature, vocab_size, min(chunk, width))


def _tile(hidden, kernel, targets, temperature, index, vocab_size, chunk):
    """Chunk `index`: first column, slice of the kernel, logits, and the target's place in it (-1 if elsewhere)."""
    # The last chunk starts early, so that all have one width; what it shares with the one before counts there only.
    first, stop = index * chunk, jnp.minimum((index + 1) * chunk, vocab_size)
    start = jnp.minimum(first, kernel.shape[1] - chunk)
    part_DV = lax.dynamic_slice_in_dim(kernel, start, chunk, axis=1)
    logits = jnp.tensordot(hidden, part_DV, axes=1, preferred_element_type=jnp.float32) / temperature
    if vocab_size % chunk:  # otherwise every chunk is full
        column = start + _columns(logits)
        logits = jnp.where((column >= first) & (column < stop), logits, OUTSIDE)
    place = jnp.where((targets >= first) & (targets < stop), targets - start, -1)
    return start, part_DV, logits, place


def _columns(logits):
    return lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)


def _walk(body, carry, vocab_size: int, chunk: int):
    """Folds `body` over the chunks; no loop if there is only one."""
    count = -(-vocab_size // chunk)
    if count == 1:
        return body(carry, 0)
    return lax.fori_loop(0, count, lambda index, carry: body(carry, index), carry)


def _forward(hidden, kernel, targets, temperature, vocab_size, chunk):
    single = vocab_size <= chunk
    kept = []

    def body(carry, index):
        # max l, sum e^(l - peak), sum e^(l - peak) (l - peak), sum e^(2 (l - peak)), l at the target
        peak, total, moment, square, target = carry
        _, _, logits, place = _tile(hidden, kernel, targets, temperature, index, vocab_size, chunk)
        if single:
            kept.append(logits)
        new_peak = jnp.maximum(peak, jnp.max(logits, axis=-1))
        shift = peak - new_peak
        centred = logits - new_peak[..., None]
        mass = jnp.exp(centred)
        moment = jnp.exp(shift) * (moment + shift * total) + jnp.sum(mass * centred, axis=-1)
        total = jnp.exp(shift) * total + jnp.sum(mass, axis=-1)
        square = jnp.exp(2 * shift) * square + jnp.sum(jnp.square(mass), axis=-1)
        found = jnp.take_along_axis(logits, jnp.maximum(place, 0)[..., None], axis=-1)[..., 0]
        target = jnp.where(place >= 0, found, target)
        return new_peak, total, moment, square, target

    nothing, zero = jnp.full(targets.shape, OUTSIDE, jnp.float32), jnp.zeros(targets.shape, jnp.float32)
    peak, total, moment, square, target = _walk(body, (nothing, zero, zero, zero, nothing), vocab_size, chunk)
    log_normaliser = peak + jnp.log(total)
    entropy = jnp.log(total) - moment / total
    stats = TokenStats(target - log_normaliser, entropy, target >= peak, jnp.log(square) - 2 * jnp.log(total))
    logits = kept[0] if single else None
    return stats, (hidden, kernel, targets, temperature, log_normaliser, entropy, logits)


def _backward(vocab_size, chunk, saved, cotangents):
    hidden, kernel, targets, temperature, log_normaliser, entropy, kept = saved
    d_logp, d_entropy = cotangents.logp[..., None], cotangents.entropy[..., None]
    rows = tuple(range(targets.ndim))

    def body(carry, index):
        d_hidden, d_kernel = carry
        start, part_DV, logits, place = _tile(hidden, kernel, targets, temperature, index, vocab_size, chunk)
        log_p = (logits if kept is None else kept) - log_normaliser[..., None]
        p = jnp.exp(log_p)
        is_target = _columns(logits) == place[..., None]
        d_logits = d_logp * (is_target.astype(jnp.float32) - p) - d_entropy * p * (log_p + entropy[..., None])
        d_logits = (d_logits / temperature).astype(jnp.result_type(hidden, kernel))  # products in the model's precision
        d_hidden += jnp.tensordot(d_logits, part_DV, axes=((-1,), (1,)), preferred_element_type=jnp.float32)
        d_part = jnp.tensordot(hidden, d_logits, axes=(rows, rows), preferred_element_type=jnp.float32)
        d_part = d_part.astype(kernel.dtype) + lax.dynamic_slice_in_dim(d_kernel, start, chunk, axis=1)
        return d_hidden, lax.dynamic_update_slice_in_dim(d_kernel, d_part, start, axis=1)

    carry = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(kernel.shape, kernel.dtype)
    d_hidden, d_kernel = _walk(body, carry, vocab_size, chunk)
    return d_hidden.astype(hidden.dtype), d_kernel, None, None


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _stats(hidden, kernel, targets, temperature, vocab_size, chunk):
    return _forward(hidden, kernel, targets, temperature, vocab_size, chunk)[0]


_stats.defvjp(_forward, _backward)
