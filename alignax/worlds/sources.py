"""The harbour desk as data sources: `source(*, split, ...) -> (rows, counts)`, as those of `alignax.data.sources`."""

import random
from typing import Any

from alignax.data.counts import Counts
from alignax.worlds import gold, harbor


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


def worked_sums(
    *, split: str, count: int, heldout: int = 256, error_rate: float = 0.3, seed: int = 0
) -> tuple[list[dict], Counts]:
    """`count` worked sums to train on, on prompts of the "reward" split; `heldout` ones on "eval" prompts.

    Rows {"prompt", "steps", "verdicts"}: the sentences of a reply, of which the grammar knows which are right
    (`gold.verdicts`). A share `error_rate` of the steps is wrong; the answer goes on from the last one.
    """
    world_split, n = ("reward", count) if split == "train" else ("eval", heldout)
    rng, out = random.Random(f"sums {split} {seed}"), []
    for row in harbor.prompts(world_split, n, seed, families=("sums",)):
        sentences = harbor.worked_sum(row, error_rate, rng)
        first, *rest = sentences
        steps = [first, *(f" {sentence}" for sentence in rest)]  # so that their concatenation is the reply
        out.append({"prompt": row["prompt"], "steps": steps, "verdicts": gold.verdicts(row["prompt"], sentences)})
    return out, Counts(len(out))
