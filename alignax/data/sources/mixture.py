"""A mixture of other sources, drawn by weight."""

from typing import Any

from alignax.data.counts import Counts, DataError
from alignax.data.reshape import Row


def mixture(*, parts: dict[str, Any], max_repeats: float = 0.0, split: str = "train") -> tuple[list[Row], Counts]:
    """The rows of all parts, each with its part's name under "part", and the sums of their counts.

    A config says parts = dict(a=dict(source="gsm8k", weight=0.7, ...), ...): a source, a weight above 0, and the
    source's arguments, of which `heldout_percent` and the splits are each part's own; whoever calls this puts there
    what the source gave, (rows, counts). A batch of training rows holds the parts in the proportion of their weights,
    however many rows they have; a smaller part is gone through more often, and a run that would do so more than
    `max_repeats` > 0 times does not start. Held-out rows are not weighted: each counts once.
    """
    rows = []
    for name in sorted(parts):
        found, _ = parts[name]
        if not found:
            raise DataError(f"the part {name!r} of the mixture has no {split} rows: leave it out, or hold out others")
        rows += [row | {"part": name} for row in found]
    return rows, Counts.sum(parts[name][1] for name in sorted(parts))
