"""Attention: which token sees which, many queries at once, and a few against a cache."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from alignax.types import Layout


def layout(valid: Bool[Array, "B T"] | Layout) -> Layout:
    """The layout of rows of one text each, padded on any side: positions count the real tokens only."""
    if isinstance(valid, Layout):
        return valid
    return Layout(valid.astype(jnp.int32), None, positions_of(valid))


def positions_of(valid_BT: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Index of each token among the real tokens of its row; padding before the first one counts as 0."""
    return jnp.maximum(jnp.cumsum(valid_BT, axis=1, dtype=jnp.int32) - 1, 0)


def visible(rows: Layout, window: int = 0) -> Bool[Array, "B T T"]:
    """Whether query t may see key s: real, no later, of the same text and branch, and less than `window` tokens away.

    `window` = 0 is no window. Distance is counted in positions: a branch lies as near to its beginning as it would
    alone.
    """
    T = rows.document.shape[1]
    query, key = (lambda x: x[:, :, None]), (lambda x: x[:, None, :])
    text = (query(rows.document) == key(rows.document)) & (key(rows.document) > 0)
    branch = jnp.bool_(True)
    if rows.branch is not None:
        branch = (key(rows.branch) == 0) | (key(rows.branch) == query(rows.branch))
    near = query(rows.position) - key(rows.position) < window if window else jnp.bool_(True)
    return jnp.tril(jnp.ones((T, T), bool))[None] & text & branch & near


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask_BTS: Bool[Array, "B T S"],
    *,
    sinks: Float[Array, " N"] | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Float[Array, "B T N H"]:
    """softmax(scale q k) v over the keys that the mask allows; a query without any key gets a finite average.

    `scale` is 1/sqrt(H) unless given. A soft cap c makes the logits c tanh(logits / c) (Gemma 2, arXiv:2408.00118).
    `sinks` are logits, one for each head, of one more key whose value is zero (gpt-oss, arXiv:2508.10925).
    """
    if not softcap and sinks is None:
        return jax.nn.dot_product_attention(q_BTNH, k_BSKH, v_BSKH, mask=mask_BTS[:, None], scale=scale)
    B, T, N, H = q_BTNH.shape
    q_BTKGH = q_BTNH.reshape(B, T, k_BSKH.shape[2], -1, H)
    logit = jnp.einsum("btkgh,bskh->bkgts", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    weight = _softmax(logit, mask_BTS[:, None, None], sinks, scale or H**-0.5, softcap)
    return jnp.einsum("bkgts,bskh->btkgh", weight.astype(v_BSKH.dtype), v_BSKH).reshape(B, T, N, H)


def attend_cached(
    q_BCNH: Float[Array, "B C N H"],
    keys: Sequence[Float[Array, "B c K H W"]],
    values: Sequence[Float[Array, "B c K W H"]],
    mask_BCS: Bool[Array, "B C S"],
    *,
    sinks: Float[Array, " N"] | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Float[Array, "B C N H"]:
    """C queries per row against a cache in blocks (`models.cache`); of several blocks one in which no row sees anything
    costs nothing."""
    B, C, N, H = q_BCNH.shape
    K, Q = keys[0].shape[2], N // keys[0].shape[2] * C
    # the queries of a group of heads are as many rows of one product with its keys
    q_B1KQH = q_BCNH.reshape(B, C, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, 1, K, Q, H)
    starts = list(itertools.accumulate((k.shape[1] * k.shape[4] for k in keys), initial=0))
    seen: list[Array | None] = [None]  # one block is always read
    if len(keys) > 1:
        seen = [mask_BCS[:, :, first:last].any() for first, last in itertools.pairwise(starts)]

    def scored(k: Array) -> Array:
        q = jnp.broadcast_to(q_B1KQH, (B, k.shape[1], K, Q, H))
        return jnp.einsum("bckqh,bckhw->bckqw", q, k, preferred_element_type=jnp.float32)

    def averaged(weight: Array, v: Array) -> Array:
        weight = weight.reshape(B, K, Q, v.shape[1], -1).transpose(0, 3, 1, 2, 4)
        return jnp.einsum("bckqw,bckwh->bckqh", weight, v, preferred_element_type=jnp.float32).sum(1)

    logits = [_where_seen(there, scored, k) for there, k in zip(seen, keys, strict=True)]
    logit = jnp.concatenate([x.transpose(0, 2, 3, 1, 4).reshape(B, K, Q, -1) for x in logits], axis=-1)
    logit_BKGCS = logit.reshape(B, K, N // K, C, -1)
    weight = _softmax(logit_BKGCS, mask_BCS[:, None, None], sinks, scale or H**-0.5, softcap)
    weight = weight.astype(values[0].dtype).reshape(B, K, Q, -1)
    parts = [weight[..., first:last] for first, last in itertools.pairwise(starts)]
    heads = sum(_where_seen(there, averaged, w, v) for there, w, v in zip(seen, parts, values, strict=True))
    heads = jnp.asarray(heads, q_BCNH.dtype)
    return heads.reshape(B, K, N // K, C, H).transpose(0, 3, 1, 2, 4).reshape(B, C, N, H)


def _where_seen(there: Bool[Array, ""] | None, f: Callable[..., Array], *args: Array) -> Array:
    """f(*args) where something is there, else zeros that cost nothing; None: there is."""
    if there is None:
        return f(*args)
    shape = jax.eval_shape(f, *args)
    return jax.lax.cond(there, f, lambda *_: jnp.zeros(shape.shape, shape.dtype), *args)


def _softmax(logit: Array, mask: Array, sinks_N: Array | None, scale: float, softcap: float) -> Array:
    """Weights of the keys, from logits [B K G ... S] of the K groups of G heads."""
    logit = logit * scale
    logit = softcap * jnp.tanh(logit / softcap) if softcap else logit
    logit = jnp.where(mask, logit, jnp.finfo(jnp.float32).min)
    weight = jax.nn.softmax(logit, axis=-1)
    if sinks_N is None:
        return weight
    sink = sinks_N.astype(jnp.float32).reshape(1, *logit.shape[1:3], *[1] * (logit.ndim - 3))
    # with Z = sum_s exp(logit_s), the keys keep Z / (Z + exp(sink)) of the weight
    return weight * jax.nn.sigmoid(jax.nn.logsumexp(logit, axis=-1, keepdims=True) - sink)
