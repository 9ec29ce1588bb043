"""Mixtures: parts of one data set drawn by weight, in an order that is a pure function of (seed, step)."""

from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from alignax.data.counts import DataError


def mixed(part_N: Int[np.ndarray, " N"], weights: Mapping[str, float], seed: int, *, shuffle: bool = True) -> Any:
    """The rows of a mixture in the order in which they are drawn, for ever: a Grain dataset of indices into `part_N`.

    `part_N` says for each row its part, an index into the sorted names of `weights`. The parts take turns in a fixed
    pattern, so that any stretch of draws holds its share of each, to within 1% of the smallest weight; each part is
    shuffled anew every time that it has been gone through, whatever the others do.
    """
    order = []
    for part in range(len(weights)):
        rows = np.flatnonzero(part_N == part)
        own_seed = int(np.random.SeedSequence([seed, part]).generate_state(1)[0])
        turn = grain.MapDataset.range(len(rows)).seed(own_seed)
        turn = turn.shuffle() if shuffle else turn
        order.append(turn.repeat().map(rows.__getitem__))
    return grain.MapDataset.mix(order, [weights[name] for name in sorted(weights)])


def epochs(
    part_N: Int[np.ndarray, " N"], weights: Mapping[str, float], drawn: int, max_repeats: float = 0.0
) -> dict[str, float]:
    """{part: how often each of its rows is read, on average, in `drawn` draws}.

    Raises DataError if a part has no rows left, or if its rows would be read more than `max_repeats` > 0 times.
    """
    total, out = sum(weights.values()), {}
    for part, name in enumerate(sorted(weights)):
        rows = int(np.sum(part_N == part))
        if not rows:
            raise DataError(f"the part {name!r} of the mixture has no rows left: look at its counts, or leave it out")
        out[name] = round(drawn * weights[name] / total / rows, 3)
        if max_repeats and out[name] > max_repeats:
            raise DataError(
                f"the part {name!r} of the mixture is exhausted: its {rows} rows would be read {out[name]} times in "
                f"{drawn} draws, and data.max_repeats = {max_repeats}; lower its weight or total_steps, or raise it"
            )
    return out
