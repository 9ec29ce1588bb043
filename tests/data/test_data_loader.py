"""The order is a pure function of (seed, step): resume, processes, epochs, and the thread that works ahead."""

import threading
import time
import traceback

import jax
import numpy as np
import pytest
from errors import refuses

from alignax.data.counts import DataError
from alignax.data.loader import Loader, eval_batches, prefetch


def arrays(rows: int):
    """A tree in which every leaf tells its row."""
    row = np.arange(rows, dtype=np.int32)
    return {"chosen": {"tokens": row[:, None] * 10 + np.arange(3)}, "reward": row * 0.5, "row": row}


def rows_of(loader: Loader, steps) -> list[int]:
    return [int(row) for step in steps for row in loader.batch(step)["row"]]


def test_leaves_stay_together():
    loader = Loader(arrays(11), 4, seed=3)
    for step in range(6):
        batch = loader.batch(step)
        np.testing.assert_array_equal(batch["reward"], batch["row"] * 0.5)
        np.testing.assert_array_equal(batch["chosen"]["tokens"], batch["row"][:, None] * 10 + np.arange(3))


def test_shuffle_is_applied_and_new_in_each_epoch():
    order = rows_of(Loader(arrays(64), 8, seed=0), range(24))
    epochs = [order[64 * e : 64 * (e + 1)] for e in range(3)]
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(64)]}) == 4
    assert order != rows_of(Loader(arrays(64), 8, seed=1), range(24))
    fixed = sum(row == i for i, row in enumerate(epochs[0]))
    assert fixed < 12  # one fixed point is expected of a random permutation


def test_without_shuffle_the_order_is_the_files():
    assert rows_of(Loader(arrays(5), 2, seed=0, shuffle=False), range(5)) == [0, 1, 2, 3, 4] * 2


@pytest.mark.parametrize(("rows", "batch_size"), [(10, 4), (7, 3), (3, 8), (1, 1), (8, 8)])
def test_every_row_once_per_epoch(rows, batch_size):
    # rows * batch_size rows are exactly batch_size epochs, whether or not the sizes divide (trap 47)
    loader = Loader(arrays(rows), batch_size, seed=5)
    order = rows_of(loader, range(rows))
    for epoch in range(batch_size):
        assert sorted(order[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert loader.batch(0)["row"].shape == (batch_size,)


@pytest.mark.parametrize(("rows", "batch_size", "steps"), [(10, 4, 3), (8, 4, 2), (3, 8, 1)])
def test_steps_per_epoch(rows, batch_size, steps):
    loader = Loader(arrays(rows), batch_size, seed=0)
    assert loader.steps_per_epoch == steps
    assert set(rows_of(loader, range(steps))) == set(range(rows))


def test_resume_equals_the_uninterrupted_run():
    whole = [Loader(arrays(10), 4, seed=9).batch(step) for step in range(12)]
    for k in (0, 1, 5, 11):
        resumed = Loader(arrays(10), 4, seed=9)  # a new process, which asks for step k first
        for step in range(k, 12):
            jax.tree.map(np.testing.assert_array_equal, resumed.batch(step), whole[step])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_order_does_not_depend_on_the_number_of_processes(processes):
    one = Loader(arrays(10), 8, seed=2)
    many = [Loader(arrays(10), 8, seed=2, process_index=p, process_count=processes) for p in range(processes)]
    for step in range(5):
        parts = [loader.batch(step)["row"] for loader in many]
        assert all(len(part) == 8 // processes for part in parts)
        np.testing.assert_array_equal(np.concatenate(parts), one.batch(step)["row"])


def test_eval_batches_cover_all_rows_once():
    batches = list(eval_batches(arrays(5) | {"valid": np.ones((5, 2), bool)}, 3))
    assert [batch["row"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, -1]]
    assert batches[1]["valid"].tolist() == [[True, True], [True, True], [False, False]]
    assert batches[1]["reward"].tolist() == [1.5, 2.0, 0.0]
    assert batches[1]["chosen"]["tokens"].tolist() == [[30, 31, 32], [40, 41, 42], [0, 0, 0]]
    assert len(list(eval_batches(arrays(6), 3))) == 2


def test_eval_batches_of_two_processes():
    data = arrays(5)
    parts = [list(eval_batches(data, 4, process_index=p, process_count=2)) for p in range(2)]
    assert [[batch["row"].tolist() for batch in part] for part in parts] == [[[0, 1], [4, -1]], [[2, 3], [-1, -1]]]
    assert data["row"].tolist() == [0, 1, 2, 3, 4]  # the data are not written to


def test_bad_sizes():
    with pytest.raises(DataError, match=r"leading axes \[2, 3\]"):
        Loader({"a": np.zeros(2), "b": np.zeros(3)}, 1, seed=0)
    with pytest.raises(DataError, match="at least 1"):
        Loader({"a": np.zeros(0)}, 1, seed=0)
    with refuses(DataError, "batch_size = 3", "multiple", "2"):
        Loader(arrays(4), 3, seed=0, process_count=2)
    with pytest.raises(DataError, match="batch_size = 0"):
        Loader(arrays(4), 0, seed=0)
    with refuses(DataError, "process_index = 2", "0 to 1"):
        Loader(arrays(4), 4, seed=0, process_index=2, process_count=2)
    with pytest.raises(DataError, match="step = -1"):
        Loader(arrays(4), 4, seed=0).batch(-1)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_prefetch_gives_every_step_in_order():
    loader = Loader(arrays(10), 4, seed=1)
    got = list(prefetch(loader.batch, 3, 9, jax.device_put, depth=2))
    assert all(isinstance(batch["row"], jax.Array) for batch in got)
    assert [batch["row"].tolist() for batch in got] == [loader.batch(step)["row"].tolist() for step in range(3, 9)]
    assert list(prefetch(loader.batch, 4, 4, jax.device_put)) == []
    assert list(prefetch(lambda step: step, 0, 1, lambda x: x, depth=5)) == [0]
    assert not threads()


def test_prefetch_works_ahead_but_no_further_than_depth():
    made, main = [], threading.get_ident()

    def make(step):
        made.append((step, threading.get_ident()))
        return step

    batches = prefetch(make, 0, 100, lambda step: step, depth=2)
    assert next(batches) == 0
    deadline = time.time() + 10
    while len(made) < 3 and time.time() < deadline:  # while "the step runs" here
        time.sleep(0.01)
    time.sleep(0.05)
    assert [step for step, _ in made] == [0, 1, 2]
    assert main not in {thread for _, thread in made}
    batches.close()
    assert not threads() and len(made) == 3


def test_prefetch_raises_at_the_step_with_the_traceback():
    def broken_reader(step):
        if step == 2:
            raise OSError("disk")
        return step

    got = []
    with pytest.raises(OSError, match="disk") as error:
        for batch in prefetch(broken_reader, 0, 10, lambda step: step):
            got.append(batch)
    assert got == [0, 1]
    assert "broken_reader" in "".join(traceback.format_tb(error.tb))
    assert not threads()


def test_prefetch_ends_when_the_loop_is_left():
    def leave():
        for batch in prefetch(lambda step: step, 0, 1000, lambda step: step):
            if batch == 3:
                raise FloatingPointError("nan")

    with pytest.raises(FloatingPointError):
        leave()
    deadline = time.time() + 10
    while threads() and time.time() < deadline:  # the traceback may still hold the generator
        time.sleep(0.01)
    with pytest.raises(DataError, match="depth = 0"):
        next(prefetch(lambda step: step, 0, 1, lambda step: step, depth=0))
