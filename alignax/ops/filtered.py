"""Log-probabilities under a filter: of a distribution of which top-k, top-p or min-p leave some tokens.

Which tokens are left is known of a whole row of the vocabulary only, so here it is the tokens that are walked in
chunks, each with all of its logits; `ops.logprobs` walks the vocabulary, and is what there is without a filter.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from alignax.ops import output
from alignax.ops.checks import Scalar
from alignax.ops.filters import Settings, filtered
from alignax.ops.logprobs import OUTSIDE, TokenStats


def filtered_stats(
    hidden: Float[Array, "*B T D"],
    kernel: Float[Array, "D V"],
    targets: Int[Array, "*B T"],
    *,
    filters: Settings,
    temperature: Scalar = 1.0,
    vocab_size: int,
    softcap: float = 0.0,
    chunk: int = 4096,
) -> TokenStats:
    """`ops.logprobs.token_stats` of the distribution that the filters leave.

    With l the tempered logits, S(l) the tokens that the filters keep of them and K = S(l) + {target},

        log p(target) = l_target - log sum_{j in K} e^{l_j}

    What the sampler says of a token that it drew is the same number, as that token is in S. It is kept in whatever the
    filters say, since the policy that learns moves on, and would give it probability 0, a ratio of 0 and no gradient
    once it leaves S. K is a constant of the gradient: d log p(target) / d l_j = 1[j = target] - p_j in K, and 0
    outside, so nothing pulls at a token that could not have been drawn.

    Args:
      hidden, kernel: differentiable (reverse mode); products of the kernel's gradient are summed in float32.
      filters: settings by name, of `ops.filters.FILTERS`; may be traced, but get no gradient.
      temperature: may be traced.
      vocab_size: columns at or beyond it are padding of the vocabulary and get no probability.
      chunk: so many positions are read at once that their logits are as many numbers as `token_stats` holds with
        chunks of so many columns, and one of each row at least. They are computed again in the backward pass.

    Returns:
      TokenStats in float32: `entropy`, `collision` and `correct` are of the distribution on K too.
    """
    T, V = targets.shape[-1], min(vocab_size, kernel.shape[1])
    step = min(max(1, T * chunk // V), T)
    count = -(-T // step)
    whole = kernel[:, :V].astype(jnp.float32)  # the sum of its gradients over the chunks is then in float32

    @partial(jax.checkpoint, prevent_cse=False)
    def one(hidden, targets):
        logits = output.logits(hidden, whole.astype(kernel.dtype), softcap=softcap, temperature=temperature)
        return _stats(logits, targets, filters)

    if count == 1:
        return one(hidden, targets)

    def parts(x: Array, axis: int) -> Array:
        """The positions in chunks, which come first; rows keep their place, and so their device."""
        x = jnp.moveaxis(x, axis, 0)
        x = jnp.pad(x, ((0, count * step - T), *((0, 0) for _ in x.shape[1:])))
        return jnp.moveaxis(x.reshape(count, step, *x.shape[1:]), 1, axis + 1)

    axis = targets.ndim - 1
    found = jax.lax.map(lambda x: one(*x), (parts(hidden, axis), parts(targets, axis)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)[..., :T], found)


def _stats(logits: Float[Array, "*B V"], targets: Int[Array, "*B"], filters: Settings) -> TokenStats:
    """Statistics of the targets among the logits that the filters leave."""
    V = logits.shape[-1]
    rows = jax.lax.stop_gradient(logits).reshape(-1, V)
    kept = jnp.isfinite(filtered(rows, filters)).reshape(logits.shape) | jax.nn.one_hot(targets, V, dtype=bool)
    peak = jnp.max(jax.lax.stop_gradient(logits), axis=-1, keepdims=True)  # every filter keeps it
    mass = jnp.where(kept, jnp.exp(jnp.where(kept, logits - peak, 0.0)), 0.0)
    total = jnp.sum(mass, axis=-1, keepdims=True)
    log_p = logits - peak - jnp.log(total)
    p = mass / total
    place = jnp.minimum(targets, V - 1)[..., None]
    logp = jnp.where(targets < V, jnp.take_along_axis(log_p, place, axis=-1)[..., 0], OUTSIDE)
    return TokenStats(
        logp=logp,
        entropy=-jnp.sum(p * log_p, axis=-1, where=kept),
        correct=jnp.take_along_axis(logits, place, axis=-1)[..., 0] >= peak[..., 0],
        collision=jax.lax.stop_gradient(jnp.log(jnp.sum(jnp.square(p), axis=-1))),
    )
