"""Texts of one pass over a batch as bundles, where each bundle goes, and the arrays of the rows that hold them."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from alignax.data.counts import DataError

Batch = dict[str, Any]
Names = tuple[str, ...]  # one of `types.PASSES`; () where the batch itself is the side, a demonstration


class Bundles(NamedTuple):
    """U bundles of K texts each that stand in one row: the beginning that they share, then a branch for each."""

    tokens: Int[np.ndarray, "U K T"]
    length: Int[np.ndarray, "U K"]  # tokens of each text; 0 where nothing is read of it
    common: Int[np.ndarray, " U"]  # tokens of the shared beginning
    wanted: Bool[np.ndarray, "U K T"]  # tokens about which something is read
    shift: int  # from a token to the state that is read about it
    part: Int[np.ndarray, " U"]  # microbatch

    @property
    def size(self) -> Int[np.ndarray, " U"]:
        """Tokens of each bundle."""
        present = self.length > 0
        return np.where(present.any(1), self.common + (self.length - self.common[:, None] * present).sum(1), 0)


class Plan(NamedTuple):
    """Where the bundles of a batch go."""

    bundles: Bundles
    group: Int[np.ndarray, " U"]  # shard * parts + part
    row: Int[np.ndarray, " U"]  # within the group
    start: Int[np.ndarray, " U"]  # first column
    document: Int[np.ndarray, " U"]  # number in the row, from 1
    need: tuple[int, int]  # rows and reads of the fullest group


def bundles_of(batch: Batch, names: Names, reads: str, shared: bool, parts: int) -> Bundles:
    """The texts of one pass over a batch; those of one row are a bundle if they are shared, else each is one."""
    sides = [batch[name] for name in names] or [batch]
    tokens, valid, mask = (np.stack([side[name] for side in sides], 1) for name in ("tokens", "valid", "mask"))
    B, T = len(tokens), tokens.shape[-1]
    K = (tokens.size // (B * T)) if shared else 1
    tokens, valid, mask = (x.reshape(-1, K, T) for x in (tokens, valid, mask))
    length = valid.sum(-1)
    wanted = {
        "tokens": lambda: mask,
        "ends": lambda: mask.any(-1, keepdims=True) & (np.arange(T) == length[..., None] - 1),
        "steps": lambda: batch["step_end"].reshape(-1, K, T),
    }[reads]()
    length = np.where(wanted.any(-1), length, 0)
    part = np.repeat(np.arange(B) % parts, len(tokens) // B)
    return Bundles(tokens, length, common_beginning(tokens, length), wanted, int(reads == "tokens"), part)


def common_beginning(tokens: Int[np.ndarray, "U K T"], length: Int[np.ndarray, "U K"]) -> Int[np.ndarray, " U"]:
    """How many first tokens the texts of each bundle have in common; texts of length 0 are not there."""
    present = length > 0
    first = np.take_along_axis(tokens, present.argmax(1)[:, None, None], 1)
    shortest = np.where(present, length, tokens.shape[-1]).min(1)
    same = ((tokens == first) | ~present[..., None]).all(1) & (np.arange(tokens.shape[-1]) < shortest[:, None])
    return np.where(same.all(1), same.shape[1], same.argmin(1)) * present.any(1)


def plan_of(bundles: Bundles, length: int, shards: int, parts: int) -> Plan:
    """First-fit decreasing, for each microbatch by itself; its rows are then dealt out to the shards in turn."""
    size, U = bundles.size, len(bundles.size)
    no_longer(int(size.max()), length)
    row, start, document = (np.zeros(U, np.int64) for _ in range(3))
    used = []
    for part in range(parts):
        mine = np.flatnonzero((bundles.part == part) & (size > 0))
        row[mine], start[mine], document[mine] = first_fit_decreasing(size[mine], length)
        used.append(int(row[mine].max(initial=-1)) + 1)
    group = row % shards * parts + bundles.part
    reads = np.bincount(group, bundles.wanted.sum((1, 2)) * (size > 0), minlength=shards * parts)
    rows, most = -(-max(used) // shards), int(reads.max())
    return Plan(bundles, group, row // shards, start, document, (max(rows, 1), max(-(-most // 16) * 16, 16)))


def first_fit_decreasing(
    size: Int[np.ndarray, " U"], length: int
) -> tuple[Int[np.ndarray, " U"], Int[np.ndarray, " U"], Int[np.ndarray, " U"]]:
    """(row, first column, number in the row from 1) of each: the longest first, each into the first row with room.

    No more than 11/9 of the fewest possible rows, and 6/9 of a row (Johnson 1973; Dosa 2007).
    """
    row, start, number = (np.zeros(len(size), np.int64) for _ in range(3))
    room, inside = np.full(len(size), length), np.zeros(len(size), np.int64)
    for unit in np.argsort(-size, kind="stable"):
        place = int(np.argmax(room >= size[unit]))
        inside[place] += 1
        row[unit], start[unit], number[unit] = place, length - room[place], inside[place]
        room[place] -= size[unit]
    return row, start, number


def no_longer(length: int, limit: int) -> int:
    """The length. Raises DataError if it is beyond the limit."""
    if length > limit:
        raise DataError(
            f"a text, or the texts of one row together, of {length} tokens, in rows made for {limit}: make the "
            "arrangement of the arrays that the batches are from"
        )
    return length


def filled(
    plan: Plan, length: int, rows: int, reads: int, shards: int, parts: int
) -> tuple[Batch, Int[np.ndarray, "U K T"]]:
    """The block of a pass, and the slot of every token of its bundles."""
    (tokens, sizes, common, wanted, shift, part), G = plan.bundles, shards * parts
    U, K, T = tokens.shape
    at = np.broadcast_to(np.arange(T), (U, K, T))
    before = common[:, None, None]
    tail = np.maximum(sizes - common[:, None], 0)
    branch_start = (common[:, None] + np.cumsum(tail, 1) - tail)[..., None]
    column = plan.start[:, None, None] + np.where(at < before, at, branch_start + at - before)
    inside = plan.row[:, None, None] * length + column  # within the group
    shard = plan.group // parts
    flat = ((shard * rows + plan.row) * parts + part)[:, None, None] * length + column
    real = at < sizes[..., None]
    values = {
        "tokens": tokens,
        "document": np.broadcast_to(plan.document[:, None, None], tokens.shape),
        "position": at,
        "branch": np.where(at < before, 0, np.arange(1, K + 1)[:, None]),
    }
    block: Batch = {}
    for name, value in values.items():
        block[name] = np.zeros((G * rows, length), np.int32)
        block[name].reshape(-1)[flat[real]] = value[real]
    u, k, t = np.nonzero(wanted & real)
    group = plan.group[u]
    order = np.argsort(group, kind="stable")
    u, k, t, group = u[order], k[order], t[order], group[order]
    number = np.arange(len(group)) - np.searchsorted(group, group)  # within its group
    block["read"], block["target"] = np.zeros((2, G, reads), np.int32)
    block["read"][group, number], block["target"][group, number] = inside[u, k, t - shift], tokens[u, k, t]
    slot = np.full((U, K, T), -1, np.int32)
    slot[u, k, t] = shard[u] * reads + number
    return block, slot
