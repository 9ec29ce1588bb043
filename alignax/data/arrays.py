"""Token ids to arrays of fixed shape, and the identity of a set of arrays."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from alignax.data.counts import DataError
from alignax.data.templates import Ids, Reply

Kept = tuple[int, Ids, list[Reply]]  # row index, prompt ids, replies


def pad(
    sequences: Sequence[Sequence[int]], length: int, fill: int, *, left: bool = False
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """(tokens, valid) of shape [B length]. `valid` comes from lengths, so `fill` may be any id, the eos included."""
    lengths_B1 = np.array([len(ids) for ids in sequences], np.int32).reshape(-1, 1)
    position_1T = np.arange(length)[None]
    valid_BT = position_1T >= length - lengths_B1 if left else position_1T < lengths_B1
    tokens_BT = np.full(valid_BT.shape, fill, np.int32)
    tokens_BT[valid_BT] = np.concatenate([np.asarray(ids, np.int32) for ids in sequences])
    return tokens_BT, valid_BT


def padded_length(lengths: Sequence[int], max_length: int, pad_to: int | None = None) -> int:
    """The longest of `lengths` rounded up to a multiple of 8, at most `max_length`; or `pad_to`, if nothing is cut."""
    longest = max(lengths)
    if pad_to is None:
        return min(max_length, -(-longest // 8) * 8)
    if pad_to < longest:
        raise DataError(f"pad_to = {pad_to} would cut a row of {longest} tokens: raise it or leave it out")
    return pad_to


def fingerprint(arrays: Any) -> str:
    """sha256 over names, types, shapes and values of a tree of arrays: the identity of a data set in the manifest."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(arrays)[0]:
        leaf = np.ascontiguousarray(leaf)
        leaf = leaf.astype(leaf.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype.name} {leaf.shape};".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def side_arrays(sequences: list[tuple[Ids, Reply]], length: int, fill: int) -> dict[str, np.ndarray]:
    """tokens, valid, mask [N length] of pairs (prompt ids, reply), padded on the right; mask is what the policy says.

    The first token of a row is never masked in: nothing predicts it.
    """
    tokens_BT, valid_BT = pad([prompt + reply.ids for prompt, reply in sequences], length, fill)
    masks = [[False] * len(prompt) + reply.mask for prompt, reply in sequences]
    mask_BT = pad(masks, length, False)[0].astype(bool) & (np.arange(length)[None] > 0)
    return {"tokens": tokens_BT, "valid": valid_BT, "mask": mask_BT}


def row_ids(kept: list[Kept]) -> Int[np.ndarray, " B"]:
    """The indices of the rows that are kept."""
    return np.array([row for row, _, _ in kept], np.int32)
