"""Log-probability, entropy, collision and accuracy of tokens from hidden states, without all the logits at once.

The vocabulary is walked in chunks: the forward pass keeps a running maximum, sum and first moment per token (an online
logsumexp), the backward pass computes the logits of each chunk again. So temporary memory grows with tokens * chunk and
not with tokens * V. A vocabulary of one chunk takes the plain path: no loop, and the logits are kept for the gradient.

Where devices hold the columns of the kernel in equal shares, a chunk takes as many columns from each: what is gathered
for it is its own part of the kernel, and never the whole kernel once per chunk.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Bool, Float, Int

from alignax.ops import output

# The logit of a column that is not in the vocabulary. Finite, so that 0 * OUTSIDE is 0 where -inf would give nan.
OUTSIDE = -1e30


class TokenStats(NamedTuple):
    """What the losses and metrics want to know of each target token."""

    logp: Float[Array, "*B"]  # log p(target), nats
    entropy: Float[Array, "*B"]  # of the distribution that the target was predicted from, nats
    correct: Bool[Array, "*B"]  # no token is more probable than the target
    collision: Float[Array, "*B"]  # log sum_v p(v)^2: the expected p of a sampled token, as a log; gets no gradient


class _Layout(NamedTuple):
    """What the walk over the vocabulary knows before it runs."""

    vocab_size: int
    shards: int  # blocks of neighbouring columns, as many as devices hold them
    block: int  # columns in each
    step: int  # columns of each block in one chunk
    softcap: float

    @property
    def single(self) -> bool:
        return self.step == self.block


def token_stats(
    hidden: Float[Array, "*B D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "*B"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    vocab_size: int,
    softcap: float = 0.0,
    chunk: int = 4096,
    shards: int = 1,
) -> TokenStats:
    """Statistics of targets[i] under softmax(l_i), l = `output.logits(hidden, kernel)`; the caller aligns the two.

    With z the product, c the soft cap, t the temperature and H the entropy,

        d logp / d l_j = 1[j = target] - p_j,    d H / d l_j = -p_j (log p_j + H),    d l / d z = (1 - (t l / c)^2) / t.

    Products accumulate in float32, whatever the inputs; gradients come back in the dtypes of the inputs.

    Args:
      hidden, kernel: differentiable (reverse mode).
      temperature: may be traced, but gets no gradient.
      vocab_size: columns at or beyond it are padding of the vocabulary and get no probability (a target there has the
        log-probability of about -1e30).
      chunk: number of vocabulary columns whose logits exist at once.
      shards: number of devices that V is cut over; one that does not divide V counts as 1, since `sharding.shardings`
        then leaves V whole.

    Returns:
      TokenStats in float32.

    Raises:
      ValueError: vocab_size is not in 1..V, or chunk or shards is not positive.
    """
    width = kernel.shape[1]
    if not 0 < vocab_size <= width:
        raise ValueError(f"vocab_size = {vocab_size}: expected 1 to {width}, the number of columns of the kernel")
    if chunk < 1 or shards < 1:
        raise ValueError(f"chunk = {chunk}, shards = {shards}: expected positive numbers of columns and of devices")
    shards = shards if width % shards == 0 else 1
    block = width // shards
    layout = _Layout(vocab_size, shards, block, min(-(-chunk // shards), block), softcap)
    targets, temperature = targets.astype(jnp.int32), jnp.asarray(temperature, jnp.float32)
    return _stats(hidden, kernel, targets, temperature, layout)


def _walk(body, carry, layout: _Layout):
    """Folds body(carry, first column in each block, how many of them) over the chunks; the last one may be smaller."""
    full, rest = divmod(layout.block, layout.step)
    if full == 1:
        carry = body(carry, 0, layout.step)
    else:
        carry = lax.fori_loop(0, full, lambda index, carry: body(carry, index * layout.step, layout.step), carry)
    return body(carry, full * layout.step, rest) if rest else carry


def _part(kernel, start, size, layout: _Layout):
    """Columns start to start + size of every block, side by side."""
    blocks = kernel.reshape(-1, layout.shards, layout.block)
    return lax.dynamic_slice_in_dim(blocks, start, size, axis=2).reshape(-1, layout.shards * size)


def _columns(start, size, layout: _Layout):
    """The places in the vocabulary of the columns of `_part`."""
    return (jnp.arange(layout.shards)[:, None] * layout.block + start + jnp.arange(size)[None]).reshape(-1)


def _place(targets, start, size, layout: _Layout):
    """The column of `_part` that is the target's; -1 if it is in none."""
    shard, column = targets // layout.block, targets % layout.block - start
    return jnp.where((column >= 0) & (column < size), shard * size + column, -1)


def _within(x, start, size, layout: _Layout, outside):
    """`x`, but `outside` in the columns that pad the vocabulary."""
    if layout.vocab_size == layout.shards * layout.block:
        return x
    inside = _columns(start, size, layout) < layout.vocab_size
    return jnp.where(inside.reshape((1,) * (x.ndim - 1) + (-1,)), x, outside)


def _forward(hidden, kernel, targets, temperature, layout: _Layout):
    kept = []

    def body(carry, start, size):
        # max l, sum e^(l - peak), sum e^(l - peak) (l - peak), sum e^(2 (l - peak)), l at the target
        peak, total, moment, square, target = carry
        part_DV = _part(kernel, start, size, layout)
        logits = output.logits(hidden, part_DV, softcap=layout.softcap, temperature=temperature)
        if layout.single:
            kept.append(logits)
        logits = _within(logits, start, size, layout, OUTSIDE)
        new_peak = jnp.maximum(peak, jnp.max(logits, axis=-1))
        shift = peak - new_peak
        centred = logits - new_peak[..., None]
        mass = jnp.exp(centred)
        moment = jnp.exp(shift) * (moment + shift * total) + jnp.sum(mass * centred, axis=-1)
        total = jnp.exp(shift) * total + jnp.sum(mass, axis=-1)
        square = jnp.exp(2 * shift) * square + jnp.sum(jnp.square(mass), axis=-1)
        place = _place(targets, start, size, layout)
        found = jnp.take_along_axis(logits, jnp.maximum(place, 0)[..., None], axis=-1)[..., 0]
        return new_peak, total, moment, square, jnp.where(place >= 0, found, target)

    nothing, zero = jnp.full(targets.shape, OUTSIDE, jnp.float32), jnp.zeros(targets.shape, jnp.float32)
    peak, total, moment, square, target = _walk(body, (nothing, zero, zero, zero, nothing), layout)
    log_normaliser = peak + jnp.log(total)
    entropy = jnp.log(total) - moment / total
    stats = TokenStats(target - log_normaliser, entropy, target >= peak, jnp.log(square) - 2 * jnp.log(total))
    return stats, (hidden, kernel, targets, temperature, log_normaliser, entropy, kept[0] if kept else None)


def _backward(layout: _Layout, saved, cotangents):
    hidden, kernel, targets, temperature, log_normaliser, entropy, kept = saved
    rows, temperature = tuple(range(targets.ndim)), jnp.asarray(temperature)  # a literal may come back as numpy's

    def body(carry, start, size):
        d_hidden, d_kernel = carry
        part_DV = _part(kernel, start, size, layout)
        logits = kept
        if kept is None:
            logits = output.logits(hidden, part_DV, softcap=layout.softcap, temperature=temperature)
        log_p = logits - log_normaliser[..., None]
        p = _within(jnp.exp(log_p), start, size, layout, 0.0)
        is_target = (
            lax.broadcasted_iota(jnp.int32, p.shape, p.ndim - 1) == _place(targets, start, size, layout)[..., None]
        )
        d_logits = jnp.zeros_like(p)
        if not isinstance(cotangents.logp, SymbolicZero):
            d_logits += cotangents.logp[..., None] * (is_target.astype(jnp.float32) - p)
        if not isinstance(cotangents.entropy, SymbolicZero):  # most losses do not look at it
            d_logits -= cotangents.entropy[..., None] * p * (log_p + entropy[..., None])
        if layout.softcap:
            d_logits *= 1 - jnp.square(logits * (temperature / layout.softcap))
        d_logits = (d_logits / temperature).astype(jnp.result_type(hidden, kernel))  # products in the model's precision
        d_hidden += jnp.tensordot(d_logits, part_DV, axes=((-1,), (1,)), preferred_element_type=jnp.float32)
        d_part = jnp.tensordot(hidden, d_logits, axes=(rows, rows), preferred_element_type=jnp.float32)
        d_part = d_part.astype(kernel.dtype).reshape(-1, layout.shards, size)
        return d_hidden, lax.dynamic_update_slice_in_dim(d_kernel, d_part, start, axis=2)

    shape = (kernel.shape[0], layout.shards, layout.block)
    d_hidden, d_kernel = _walk(body, (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(shape, kernel.dtype)), layout)
    return d_hidden.astype(hidden.dtype), d_kernel.reshape(kernel.shape), None, None


def _saving(hidden, kernel, targets, temperature, layout):
    """`_forward`; with symbolic zeros its arguments come wrapped, with the word whether their gradient is wanted."""
    return _forward(hidden.value, kernel.value, targets.value, temperature.value, layout)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _stats(hidden, kernel, targets, temperature, layout):
    return _forward(hidden, kernel, targets, temperature, layout)[0]


_stats.defvjp(_saving, _backward, symbolic_zeros=True)
