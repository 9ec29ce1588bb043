"""Attention: which token sees which, many queries at once, and a few against a cache."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

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


class Shared(NamedTuple):
    """Keys and values of P prompts, each of which several rows go on from: M at most."""

    keys: Sequence[Float[Array, "P c K H W"]]  # blocks, as those of a row
    values: Sequence[Float[Array, "P c K W H"]]
    mask: Bool[Array, "B C s"]  # what each query sees of its own prompt
    row: Int[Array, "P M"]  # which rows go on from a prompt; one beyond all is none
    place: Int[Array, " B"]  # of a row among those P * M

    def together(self, x_BKQ: Array) -> Array:
        """[B K Q ...] -> [P K M*Q ...]: of a prompt's rows the queries, as of one."""
        x_PMKQ = jnp.swapaxes(x_BKQ.at[self.row].get(mode="clip"), 1, 2)
        return x_PMKQ.reshape(*x_PMKQ.shape[:2], -1, *x_PMKQ.shape[4:])

    def apart(self, x_PKR: Array) -> Array:
        """[P K M*Q ...] -> [B K Q ...]."""
        P, K, M = *x_PKR.shape[:2], self.row.shape[1]
        x_PMKQ = jnp.swapaxes(x_PKR.reshape(P, K, M, -1, *x_PKR.shape[3:]), 1, 2)
        return x_PMKQ.reshape(P * M, *x_PMKQ.shape[2:])[self.place]


def attend_cached(
    q_BCNH: Float[Array, "B C N H"],
    keys: Sequence[Float[Array, "B c K H W"]],
    values: Sequence[Float[Array, "B c K W H"]],
    mask_BCS: Bool[Array, "B C S"],
    *,
    shared: Shared | None = None,
    skip: bool = True,
    sinks: Float[Array, " N"] | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
) -> Float[Array, "B C N H"]:
    """C queries per row against a cache in blocks (`models.cache`), and against the keys of its prompt if that is
    `shared`; with `skip`, one of several blocks in which no row sees anything costs nothing."""
    B, C, N, H = q_BCNH.shape
    K = keys[0].shape[2]
    # the queries of a group of heads are as many rows of one product with its keys
    q_BKQH = q_BCNH.reshape(B, C, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
    logit_BKQS = _scores(q_BKQH, keys, mask_BCS, skip)
    if shared:
        of_prompt = shared.apart(_scores(shared.together(q_BKQH), shared.keys, shared.mask, skip))
        logit_BKQS = jnp.concatenate([of_prompt, logit_BKQS], axis=-1)
        mask_BCS = jnp.concatenate([shared.mask, mask_BCS], axis=-1)
    logit_BKGCS = logit_BKQS.reshape(B, K, N // K, C, -1)
    weight = _softmax(logit_BKGCS, mask_BCS[:, None, None], sinks, scale or H**-0.5, softcap)
    weight = weight.astype(values[0].dtype).reshape(B, K, -1, weight.shape[-1])
    s = shared.mask.shape[2] if shared else 0
    heads = _average(weight[..., s:], values, mask_BCS[..., s:], skip)
    if shared:
        heads += shared.apart(_average(shared.together(weight[..., :s]), shared.values, shared.mask, skip))
    heads = heads.astype(q_BCNH.dtype).reshape(B, K, N // K, C, H)
    return heads.transpose(0, 3, 1, 2, 4).reshape(B, C, N, H)


def _scores(q_RKQH: Array, keys: Sequence[Array], mask_BCS: Array, skip: bool) -> Float[Array, "R K Q S"]:
    """Queries times keys, without the blocks that nobody sees if some may be skipped."""
    R, K, Q, H = q_RKQH.shape

    def scored(k: Array) -> Array:
        q = jnp.broadcast_to(q_RKQH[:, None], (R, k.shape[1], K, Q, H))
        return jnp.einsum("bckqh,bckhw->bckqw", q, k, preferred_element_type=jnp.float32)

    parts = [_where_seen(there, scored, k) for there, k in zip(_seen(keys, mask_BCS, skip), keys, strict=True)]
    return jnp.concatenate([x.transpose(0, 2, 3, 1, 4).reshape(R, K, Q, -1) for x in parts], axis=-1)


def _average(weight_RKQS: Array, values: Sequence[Array], mask_BCS: Array, skip: bool) -> Float[Array, "R K Q H"]:
    """Values averaged by their weights, without the blocks that nobody sees if some may be skipped."""
    R, K, Q, _ = weight_RKQS.shape

    def averaged(weight: Array, v: Array) -> Array:
        weight = weight.reshape(R, K, Q, v.shape[1], -1).transpose(0, 3, 1, 2, 4)
        return jnp.einsum("bckqw,bckwh->bckqh", weight, v, preferred_element_type=jnp.float32).sum(1)

    ends = list(itertools.accumulate(v.shape[1] * v.shape[3] for v in values))[:-1]
    parts = zip(_seen(values, mask_BCS, skip), jnp.split(weight_RKQS, ends, axis=-1), values, strict=True)
    return sum((_where_seen(there, averaged, w, v) for there, w, v in parts), jnp.zeros((), jnp.float32))


def _seen(blocks: Sequence[Array], mask_BCS: Bool[Array, "B C S"], skip: bool) -> list[Array | None]:
    """Of each block of keys or values whether any query sees something of it; None: it is read in any case."""
    if not skip or len(blocks) == 1:
        return [None] * len(blocks)
    size = mask_BCS.shape[2] // sum(block.shape[1] for block in blocks)  # of a tile
    starts = itertools.accumulate((block.shape[1] * size for block in blocks), initial=0)
    return [mask_BCS[:, :, first:last].any() for first, last in itertools.pairwise(starts)]


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
