"""Batches without padding: several texts in a row, what texts have in common computed once, shapes from a short list.

An arrangement works on one batch at a time, after the order has drawn it. So a step learns from the same rows as it
would without it, the state of the order stays the step, and the records that losses see stay [B T], row for row: only
the rows that the model reads are others, and `slot` says where in what was read of them a token's statistics are.
"""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import Bool, Int

from alignax.data.bundles import Batch, Bundles, Names, Plan, bundles_of, filled, no_longer, plan_of
from alignax.data.counts import DataError
from alignax.types import PASSES

MODES = ("off", "bucketed", "packed", "shared")
# What is read of a text: its masked tokens, from the states before them; its last state; the states where steps end.
READS = ("tokens", "ends", "steps")
BUCKETS = 4  # shapes that usual batches are brought into
DRAWS = 64  # batches that are tried to find these shapes


def arrangement(
    arrays: Batch, mode: str, *, reads: str, batch_size: int, shards: int = 1, parts: int = 1,
    draws: Iterable[Int[np.ndarray, " B"]] | None = None,
) -> Callable[[Batch], Batch]:  # fmt: skip
    """What makes of a batch of `arrays`, padded on the right by the encoders, one that is laid out as `mode` says.

    - "off": as it is: every row as long as the longest of the data;
    - "bucketed": cut to a length that the longest row of the batch fits into;
    - "packed": as many texts in a row as fit, first-fit decreasing;
    - "shared": the same, with the texts of one pair or ranking in one row, as branches from their common beginning,
      which is there once.

    Batches are brought into one of `BUCKETS` shapes, quantiles of what the batches of the rows `draws` need (by default
    `DRAWS` random ones); where one needs more, the largest shape grows by 1.25 until it fits. So a step is compiled
    `BUCKETS` times and a few.

    Args:
      reads: whose states are read: "tokens", those that are learnt; "ends", the last ones of texts; "steps", of steps.
      shards, parts: devices and microbatches. The G = shards * parts groups have as many rows each: one for each of
        both, so that what is read does not cross devices. Microbatch p has every parts-th row and group, as
        `train.step.cut` takes them, and its slots count within it.

    Returns:
      A function of a batch. A packed one has in the place of each side's tokens and valid the array slot, [B T], or [B]
      where `reads` is "ends": the place in the flattened [G N] list of what is read; -1: nowhere. The block "packed" of
      each pass holds tokens, document, position and, if shared, branch [R L] (see `types.Layout`), and read [G N], the
      places within the rows of a group whose states are read, with target [G N], the tokens that they predict.

    Raises:
      DataError: an unknown mode or `reads`, a `batch_size` that does not divide into the parts; the function: a text,
        or bundle, that is longer than any of `arrays`.
    """
    if mode not in MODES:
        raise DataError(f"packing = {mode!r}: expected one of {', '.join(map(repr, MODES))}")
    if reads not in READS:
        raise DataError(f"reads = {reads!r}: expected one of {', '.join(map(repr, READS))}")
    if batch_size % parts:
        raise DataError(f"batch_size = {batch_size}: expected a multiple of the {parts} microbatches")
    if mode == "off":
        return lambda batch: batch
    if draws is None:
        draws = np.random.default_rng(0).integers(len(arrays["row"]), size=(DRAWS, batch_size))
    tried = (jax.tree.map(lambda leaf, rows=rows: leaf[rows], arrays) for rows in draws)
    if mode == "bucketed":
        full = max(side["valid"].shape[-1] for side in _sides(arrays))
        ladder = _ladder([(min(-(-_longest(batch) // 8) * 8, full),) for batch in tried])
        return lambda batch: _cut(batch, min(full, _fitting(ladder, (no_longer(_longest(batch), full),))[0]))
    bundle = lambda batch, names: bundles_of(batch, names, reads, mode == "shared", parts)  # noqa: E731
    lengths = {names: _row_length(arrays, lambda batch, names=names: bundle(batch, names)) for names in _passes(arrays)}

    def planned(batch: Batch) -> dict[Names, Plan]:
        return {names: plan_of(bundle(batch, names), length, shards, parts) for names, length in lengths.items()}

    def need(plans: dict[Names, Plan]) -> tuple[int, ...]:
        return tuple(size for plan in plans.values() for size in plan.need)

    ladder = _ladder([need(planned(batch)) for batch in tried])

    def arrange(batch: Batch) -> Batch:
        plans = planned(batch)
        sizes = iter(_fitting(ladder, need(plans)))
        for names, plan in plans.items():
            block, slot_UKT = filled(plan, lengths[names], next(sizes), next(sizes), shards, parts)
            # not every kernel knows branches: a block that has none must not seem to
            if mode == "packed" or plan.bundles.tokens.shape[1] == 1:
                del block["branch"]
            batch = _placed(batch, names, block, slot_UKT, reads)
        return batch

    return arrange


def filling(batch: Batch) -> tuple[int, int]:
    """(real tokens, all tokens) that the model reads of a batch, arranged or not."""
    masks = _read(batch)
    return sum(int(x.sum()) for x in masks), sum(x.size for x in masks)


def _read(batch: Batch) -> list[Bool[np.ndarray, "..."]]:
    """Where the rows that the model reads hold real tokens."""
    blocks = [x for x in (batch, *batch.values()) if isinstance(x, dict) and "packed" in x]
    return [block["packed"]["document"] > 0 for block in blocks] or [side["valid"] for side in _sides(batch)]


def compared(arrays: Batch, batch_size: int) -> list[tuple[str, int, int, float]]:
    """(mode, tokens that the model reads in a step, longest row, share of real tokens) of each, over the first rows.

    On one device and in one microbatch: more of them part the rows, which are then less full.
    """
    batches = [
        jax.tree.map(lambda leaf, i=i: leaf[i : i + batch_size], arrays)
        for i in range(0, max(1, min(4 * batch_size, len(arrays["row"]) - batch_size + 1)), batch_size)
    ]
    out = []
    for mode in MODES:
        arrange = arrangement(arrays, mode, reads="tokens", batch_size=len(batches[0]["row"]))
        made = [arrange(batch) for batch in batches]
        real, places = np.sum([filling(batch) for batch in made], axis=0)
        length = max(row.shape[-1] for batch in made for row in _read(batch))
        out.append((mode, int(places) // len(batches), length, float(real / places)))
    return out


# ---- what a batch holds


def _passes(batch: Batch) -> list[Names]:
    return [names for names in PASSES if names[0] in batch] or [()]


def _sides(batch: Batch) -> list[Batch]:
    return [batch[name] for names in _passes(batch) for name in names] or [batch]


def _row_length(arrays: Batch, bundle: Callable[[Batch], Bundles]) -> int:
    """Columns of a packed row: for the longest bundle of the data, and for two of middling size at least."""
    rows = len(arrays["row"])
    some = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 4096], arrays) for i in range(0, rows, 4096)]
    sizes = np.concatenate([bundle(batch).size for batch in some])
    return -(-max(int(sizes.max()), int(2 * sizes.mean())) // 64) * 64


# ---- shapes


def _ladder(needs: list[tuple[int, ...]]) -> Int[np.ndarray, "S A"]:
    """Shapes of the usual batches, the smallest first."""
    return np.quantile(np.array(needs), np.arange(1, BUCKETS + 1) / BUCKETS, axis=0, method="higher")


def _fitting(ladder: Int[np.ndarray, "S A"], need: tuple[int, ...]) -> tuple[int, ...]:
    """The first shape that holds it."""
    shape = next((one for one in ladder if (one >= need).all()), ladder[-1])
    while (shape < need).any():
        shape = np.where(shape < need, -(-shape * 5 // 4), shape)
    return tuple(int(size) for size in shape)


def _longest(batch: Batch) -> int:
    return max(int(side["valid"].sum(-1).max()) for side in _sides(batch))


def _cut(batch: Batch, length: int) -> Batch:
    """A batch without the columns from `length` on."""
    along = {"tokens", "valid", "mask", "ref_logp", "step_end"} | ({"target"} if "step_end" in batch else set())

    def cut(path, leaf):
        return leaf[..., :length] if path[-1].key in along else leaf

    return jax.tree_util.tree_map_with_path(cut, batch)


def _placed(batch: Batch, names: Names, block: Batch, slot_UKT: Int[np.ndarray, "U K T"], reads: str) -> Batch:
    """The batch with a pass's block in it, and with slots in the place of the tokens of its sides."""
    mask = next(side for side in [*(batch[name] for name in names), batch])["mask"]
    slot = slot_UKT.reshape(len(batch["row"]), -1, slot_UKT.shape[-1])
    slot = slot.max(-1) if reads == "ends" else slot  # [B K] or [B K T]
    shape = mask.shape[:-1] if reads == "ends" else mask.shape
    slots = [x.reshape(shape) for x in np.split(slot, max(len(names), 1), 1)]
    kept = lambda side, slot: {n: x for n, x in side.items() if n not in ("tokens", "valid")} | {"slot": slot}  # noqa: E731
    if not names:
        return kept(batch, slots[0]) | {"packed": block}
    sides = {name: kept(batch[name], slot) for name, slot in zip(names, slots, strict=True)}
    if len(names) > 1:
        return batch | sides | {"packed": block}
    return batch | {name: side | {"packed": block} for name, side in sides.items()}
