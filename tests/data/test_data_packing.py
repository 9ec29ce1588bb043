"""Where texts go: every token once, in its place, and few shapes."""

import jax
import numpy as np
import pytest
from errors import refuses

from alignax.data.bundles import first_fit_decreasing
from alignax.data.counts import DataError
from alignax.data.loader import Loader, eval_batches
from alignax.data.packing import BUCKETS, MODES, arrangement, compared, filling

T = 40


def pairs(rows=200, seed=0):
    """Pairs of very unequal lengths: a prompt, replies that agree in up to two tokens more, then differ."""
    rng, out = np.random.default_rng(seed), {}
    prompt, shared = rng.integers(2, 12, rows), rng.integers(0, 3, rows)
    tokens = rng.integers(5, 1000, (rows, T)).astype(np.int32)
    for k, name in enumerate(("chosen", "rejected")):
        own = tokens.copy()
        own[np.arange(T)[None] >= (prompt + shared)[:, None]] += 1000 * (k + 1)
        length = prompt + shared + rng.integers(1, T - 14, rows)
        valid = np.arange(T)[None] < length[:, None]
        mask = valid & (np.arange(T)[None] >= prompt[:, None])
        out[name] = {"tokens": np.where(valid, own, 0), "valid": valid, "mask": mask}
    return out | {"row": np.arange(rows, dtype=np.int32)}


def take(arrays, index):
    return {n: take(x, index) if isinstance(x, dict) else x[index] for n, x in arrays.items()}


def seen_from(block, group, place, parts):
    """The tokens that the state at a place of a group sees, in the order of their positions."""
    rows, length = len(block["tokens"]) // len(block["read"]), block["tokens"].shape[1]
    shard, part = divmod(group, parts)
    row, column = (shard * rows + place // length) * parts + part, place % length
    visible = (block["document"][row] == block["document"][row, column]) & (np.arange(length) <= column)
    if "branch" in block:
        visible &= np.isin(block["branch"][row], (0, block["branch"][row, column]))
    order = np.argsort(block["position"][row][visible])
    assert list(block["position"][row][visible][order]) == list(range(visible.sum()))
    return list(block["tokens"][row][visible][order])


@pytest.mark.parametrize("shards, parts", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("mode", ["packed", "shared"])
def test_every_masked_token_is_predicted_from_its_own_text(mode, shards, parts):
    arrays = pairs()
    batch = take(arrays, np.arange(8))
    made = arrangement(arrays, mode, reads="tokens", batch_size=8, shards=shards, parts=parts)(batch)
    block, seen = made["packed"], 0
    assert len(block["read"]) == shards * parts and len(block["tokens"]) % (shards * parts) == 0
    for name in ("chosen", "rejected"):
        slot, side = made[name]["slot"], batch[name]
        np.testing.assert_array_equal(slot >= 0, side["mask"])
        np.testing.assert_array_equal(made[name]["mask"], side["mask"])
        for b, t in zip(*np.nonzero(side["mask"])):
            shard, n = divmod(slot[b, t], block["read"].shape[1])
            group = shard * parts + b % parts  # of the microbatch that the row is in
            assert block["target"][group, n] == side["tokens"][b, t]
            assert seen_from(block, group, block["read"][group, n], parts) == list(side["tokens"][b, :t])
            seen += 1
    assert seen > 100


def test_what_is_shared_is_there_once():
    arrays = pairs()
    batch = take(arrays, np.arange(16))
    packed, shared = (
        arrangement(arrays, mode, reads="ends", batch_size=16)(batch)["packed"] for mode in ("packed", "shared")
    )
    real = [int((block["document"] > 0).sum()) for block in (packed, shared)]
    both = sum(int(batch[name]["valid"].sum()) for name in ("chosen", "rejected"))
    agree = batch["chosen"]["tokens"] == batch["rejected"]["tokens"]
    agree &= batch["chosen"]["valid"] & batch["rejected"]["valid"]
    assert real == [both, both - int(np.cumprod(agree, axis=1).sum())]
    assert "branch" not in packed and set(np.unique(shared["branch"])) == {0, 1, 2}


def test_a_reply_that_begins_another_needs_no_branch_of_its_own():
    short, long = [5, 6, 7], [5, 6, 7, 8, 9]
    side = lambda ids: {  # noqa: E731
        "tokens": np.array([ids + [0] * (6 - len(ids))], np.int32),
        "valid": np.arange(6)[None] < len(ids),
        "mask": (np.arange(6)[None] < len(ids)) & (np.arange(6)[None] > 1),
    }
    arrays = {"chosen": side(short), "rejected": side(long), "row": np.zeros(1, np.int32)}
    made = arrangement(arrays, "shared", reads="ends", batch_size=1)(arrays)
    block = made["packed"]
    assert int((block["document"] > 0).sum()) == 5
    places = [block["read"][0, made[name]["slot"][0]] for name in ("chosen", "rejected")]
    assert [seen_from(block, 0, place, 1) for place in places] == [short, long]


def test_first_fit_decreasing_by_hand():
    # 6 | 5+3 | 4+4, then 2 into the first room left, and 1 beside it
    size = np.array([4, 6, 2, 5, 3, 1, 4])
    row, start, number = first_fit_decreasing(size, 8)
    assert list(row) == [2, 0, 0, 1, 1, 3, 2]
    assert list(start) == [0, 0, 6, 0, 5, 0, 4] and list(number) == [1, 1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("mode", ["bucketed", "packed", "shared"])
def test_a_run_meets_few_shapes(mode):
    arrays = pairs(2000)
    arrange = arrangement(arrays, mode, reads="tokens", batch_size=16)
    rng, shapes = np.random.default_rng(7), set()
    for _ in range(300):
        made = arrange(take(arrays, rng.integers(2000, size=16)))
        block = made.get("packed", made["chosen"])
        shapes.add((block["tokens"].shape, made["packed"]["read"].shape if mode != "bucketed" else 0))
    assert len(shapes) <= BUCKETS + 2, shapes
    worst = take(arrays, np.argsort(-sum(arrays[n]["valid"].sum(1) for n in ("chosen", "rejected")))[:16])
    # a batch that needs more than any that was tried is not refused, and loses nothing
    both = sum(int(worst[name]["valid"].sum()) for name in ("chosen", "rejected"))
    assert (
        filling(arrange(worst))[0] == both if mode != "shared" else both - 16 * 13 < filling(arrange(worst))[0] < both
    )


def test_packed_rows_are_nearly_full_and_shared_ones_fewer():
    arrays = pairs(2000)
    batch = take(arrays, np.arange(64))
    made = {m: arrangement(arrays, m, reads="tokens", batch_size=64)(batch) for m in ("off", "packed", "shared")}
    (real, padded), (same, packed), (fewer, _) = (filling(made[mode]) for mode in made)
    assert real / padded < 0.65 and same == real and same / packed > 0.85 and fewer < 0.9 * real


def test_rows_that_fill_up_the_last_batch_take_no_room():
    arrays = pairs()
    batch = take(arrays, np.arange(8))
    for name in ("chosen", "rejected"):
        for array in batch[name].values():
            array[5:] = 0
    batch["row"][5:] = -1
    made = arrangement(arrays, "shared", reads="ends", batch_size=8)(batch)
    assert (made["chosen"]["slot"] >= 0).tolist() == [True] * 5 + [False] * 3
    alone = arrangement(arrays, "shared", reads="ends", batch_size=5)(take(arrays, np.arange(5)))
    assert filling(made)[0] == filling(alone)[0]


@pytest.mark.parametrize("rows", [3, 200])
def test_modes_are_compared(rows):
    found = compared(take(pairs(), np.arange(rows)), 16)
    assert [mode for mode, *_ in found] == list(MODES)
    places, longest = ({one[0]: one[k] for one in found} for k in (1, 2))
    assert places["off"] == 2 * T * min(rows, 16) and all(0 < share <= 1 for *_, share in found)
    assert longest["off"] == T >= longest["bucketed"]
    if rows == 200:
        assert places["shared"] < places["packed"] < places["bucketed"] <= places["off"]


def test_what_cannot_be_arranged_is_refused():
    with refuses(DataError, "packing = 'dense'", "'off', 'bucketed', 'packed', 'shared'"):
        arrangement(pairs(), "dense", reads="tokens", batch_size=8)
    with refuses(DataError, "reads = 'all'", "'tokens', 'ends', 'steps'"):
        arrangement(pairs(), "packed", reads="all", batch_size=8)
    with refuses(DataError, "batch_size = 8", "multiple", "3"):
        arrangement(pairs(), "packed", reads="tokens", batch_size=8, parts=3)


@pytest.mark.parametrize("mode", ["bucketed", "packed", "shared"])
def test_a_text_longer_than_any_of_the_data_is_refused_and_not_laid_over_its_neighbours(mode):
    arrays = pairs()
    short = take(arrays, np.flatnonzero(sum(arrays[n]["valid"].sum(1) for n in ("chosen", "rejected")) < 24))
    short = {n: {k: v[:, :24] for k, v in x.items()} if isinstance(x, dict) else x for n, x in short.items()}
    longest = take(arrays, np.argsort(-arrays["chosen"]["valid"].sum(1) - arrays["rejected"]["valid"].sum(1))[:1])
    arrange = arrangement(short, mode, reads="tokens", batch_size=1)
    with refuses(DataError, "tokens", "rows made for"):
        for _ in range(3):  # twice as long each time: rows of packed batches have room for two texts of middling size
            arrange(longest)
            longest = {n: {k: np.concatenate([v, v], 1) for k, v in x.items()} if isinstance(x, dict) else x
                       for n, x in longest.items()}  # fmt: skip


@pytest.mark.parametrize("mode", ["bucketed", "packed", "shared"])
def test_processes_together_hold_the_global_batch(mode):
    arrays = pairs(30)
    options = {"arrange": arrangement(arrays, mode, reads="tokens", batch_size=8, shards=4)}
    processes = [{"process_index": p, "process_count": 2} for p in range(2)]
    for make in (
        lambda **process: [Loader(arrays, 8, 0, **options, **process).batch(3)],
        lambda **process: list(eval_batches(arrays, 8, **options, **process)),
    ):
        whole, halves = make(), [make(**process) for process in processes]
        for batch, *parts in zip(whole, *halves, strict=True):
            joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
            jax.tree.map(np.testing.assert_array_equal, joined, batch)
