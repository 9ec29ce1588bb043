"""The harbour desk as data sources: `source(*, split, ...) -> (rows, counts)`, as those of `alignax.data.sources`."""

from typing import Any

from alignax.data.counts import Counts
from alignax.worlds import harbor


def demonstrations(*, split: str, count: int, heldout: int = 256, seed: int = 0) -> tuple[list[dict[str, Any]], Counts]:
    """`count` demonstrations on the prompts of the "sft" split to train on; `heldout` ones on "eval" prompts."""
    if split == "train":
        rows = harbor.demonstrations(count, seed, split="sft")
    else:
        rows = harbor.demonstrations(heldout, seed, split="eval")
    return rows, Counts(len(rows))


def prompts(*, split: str, count: int, world_split: str = "online", seed: int = 0) -> tuple[list[dict], Counts]:
    """`count` distinct prompts of `world_split`; there are no held-out ones within a split, `split` must be "train"."""
    if split != "train":
        raise ValueError(f"prompts of the harbour desk have no split {split!r}: choose another world_split instead")
    rows = harbor.prompts(world_split, count, seed, distinct=True)
    return rows, Counts(len(rows))
