"""Batches as a pure function of (seed, step): the order's whole state is the step, and a resumed run needs no other."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Int

from alignax.data.counts import DataError
from alignax.data.mixture import mixed

Arrays = Any  # a tree of numpy arrays with a common leading axis
Arrange = Callable[[Arrays], Arrays]  # of a global batch, into rows that divide over the processes: `packing`


class Loader:
    """Random access to the batches of a data set that repeats for ever, shuffled anew in each epoch.

    Batches run over the end of an epoch, so every row comes once per epoch, whatever the sizes: no row is dropped, and
    a batch may be larger than the data. `batch_size` counts rows of the global batch; with several processes each makes
    its own contiguous `batch_size / process_count` rows, and the global order does not depend on their number.

    With `weights`, {part: weight}, the arrays are a mixture: `arrays["part"]` says which of the sorted parts each row
    is of, and rows come by weight (`mixture.mixed`), those of one part once before any comes again.

    `arrange` lays a batch out in another way (`alignax.data.packing`). It sees the global batch, and each process takes
    its share of what comes out.
    """

    def __init__(
        self,
        arrays: Arrays,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        weights: Mapping[str, float] | None = None,
        arrange: Arrange | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self.rows = _rows(arrays)
        self.batch_size = batch_size
        self._arrays = arrays
        _own_rows(batch_size, process_index, process_count)
        self._process = (arrange, process_index, process_count)
        if weights:
            order = mixed(arrays["part"], weights, seed, shuffle=shuffle)
        else:
            order = grain.MapDataset.range(self.rows).seed(seed)
            order = (order.shuffle() if shuffle else order).repeat()
        self._order = order.batch(batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every row has come at least once, without weights: rows / batch_size, rounded up."""
        return -(-self.rows // self.batch_size)

    def indices(self, step: int) -> Int[np.ndarray, " B"]:
        """The rows of the global batch of `step` >= 0, in order."""
        if step < 0:
            raise DataError(f"step = {step}: expected 0 or more")
        return np.asarray(self._order[step])

    def batch(self, step: int) -> Arrays:
        """This process's rows of the global batch of `step`: the same for ever for the same (seed, step)."""
        index = self.indices(step)
        return _share(
            lambda rows: jax.tree.map(lambda leaf: leaf[index[rows]], self._arrays), len(index), *self._process
        )


def eval_batches(
    arrays: Arrays, batch_size: int, *, arrange: Arrange | None = None, process_index: int = 0, process_count: int = 1
) -> Iterator[Arrays]:
    """Every row once, in order, in batches of fixed shape; each process gets its own rows, as in `Loader`.

    The last batch is filled with rows that count for nothing: all False, all 0, and -1 under the key "row".
    """
    for start in range(0, _rows(arrays), batch_size):
        index = np.arange(start, start + batch_size)
        take = lambda rows, index=index: jax.tree_util.tree_map_with_path(  # noqa: E731
            lambda path, leaf: _take(path, leaf, index[rows]), arrays
        )
        yield _share(take, batch_size, arrange, process_index, process_count)


def prefetch(
    make_batch: Callable[[int], Arrays], start: int, stop: int, put: Callable[[Arrays], Any], *, depth: int = 2
) -> Iterator[Any]:
    """put(make_batch(step)) for each step of [start, stop), prepared up to `depth` steps ahead in a background thread.

    An exception comes out at its own step, with the thread's traceback. Closing the generator, or leaving it, waits for
    the one batch in hand and ends the thread. A thread pool of one rather than Grain's prefetch, which takes as many
    lines: Grain's `close` returns while a batch is still being made, and it rewrites tracebacks.
    """
    if depth < 1:
        raise DataError(f"depth = {depth}: expected 1 or more batches prepared ahead")
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(1, "prefetch") as pool:
        try:
            for step in range(start, stop):
                pending.append(pool.submit(lambda step=step: put(make_batch(step))))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _rows(arrays: Arrays) -> int:
    sizes = {len(leaf) for leaf in jax.tree.leaves(arrays)}
    if len(sizes) != 1 or sizes == {0}:
        raise DataError(f"arrays with leading axes {sorted(sizes)}: expected one common number of rows, at least 1")
    return sizes.pop()


def _share(
    take: Callable[[slice], Arrays], batch_size: int, arrange: Arrange | None, process_index: int, process_count: int
) -> Arrays:
    """This process's rows of a global batch, of which `take(rows)` takes some."""
    if arrange is None:
        return take(_own_rows(batch_size, process_index, process_count))
    local = lambda leaf: leaf[_own_rows(len(leaf), process_index, process_count)]  # noqa: E731
    return jax.tree.map(local, arrange(take(slice(None))))


def _own_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count:
        raise DataError(f"batch_size = {batch_size}: expected a positive multiple of the {process_count} processes")
    if not 0 <= process_index < process_count:
        raise DataError(f"process_index = {process_index}: expected 0 to {process_count - 1}")
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def _take(path: tuple, leaf: np.ndarray, index: np.ndarray) -> np.ndarray:
    real = index < len(leaf)
    taken = leaf[np.where(real, index, 0)]
    taken[~real] = -1 if path and getattr(path[-1], "key", None) == "row" else 0
    return taken
