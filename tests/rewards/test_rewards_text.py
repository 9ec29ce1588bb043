"""Rewards over text: what counts as a number, what as a missing one, and what comes too late."""

import asyncio
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses

from alignax.bound import bound
from alignax.rewards.text import Trouble, score_texts, total_reward
from alignax.rewards.trl import trl
from alignax.rewards.workers import Workers


@pytest.mark.parametrize("value, want", [(0.0, {"total": 0.0}), (2, {"total": 2.0}),
                                         ({"total": 1.5, "kind": True}, {"total": 1.5, "kind": 1.0})])  # fmt: skip
def test_total_reward_takes_numbers_and_parts(value, want):
    # trap 39: a reward of 0 is a reward
    seen = {}

    def reward(row, completion, *, finished):
        seen.update(row=row, completion=completion, finished=finished)
        return value

    assert total_reward(reward, {"a": 1}, "text", False) == want
    assert seen == {"row": {"a": 1}, "completion": "text", "finished": False}


UNFIT = [
    float("inf"), {"kind": 1.0}, "1.5", b"1", [1.0], np.ones(2), np.ones(1), jnp.ones((1, 1)), 1j, {"total": "good"},
    {"total": 1.0, "kind": [2.0]}, {"total": 1.0, "kind": float("inf")},
]  # fmt: skip


@pytest.mark.parametrize("value", [None, float("nan"), {"total": None}, {"total": 2.0, "kind": None}, *UNFIT])
def test_total_reward_refuses_what_is_no_finite_number(value):
    with refuses(ValueError, "'text'", "finite"):
        total_reward(lambda row, completion, *, finished: value, {}, "text", True)


@pytest.mark.parametrize("value", [None, float("nan"), np.float32("nan"), {"total": None, "kind": None}])
def test_a_reward_may_say_that_it_cannot_score(value):
    found = total_reward(lambda row, completion, *, finished: value, {}, "text", True, missing=True)
    assert np.isnan(found["total"])


def test_a_part_may_be_missing_where_scores_may_be():
    found = total_reward(lambda *_, finished: {"total": 2.0, "kind": None}, {}, "text", True, missing=True)
    assert found["total"] == 2.0 and np.isnan(found["kind"])


@pytest.mark.parametrize("value", UNFIT)
def test_what_is_no_number_is_no_missing_score(value):
    with refuses(ValueError, "'text'", "finite", "nan"):
        total_reward(lambda row, completion, *, finished: value, {}, "text", True, missing=True)


@pytest.mark.parametrize(
    "value", [np.float32(0.5), np.array(0.5), jnp.float32(0.5), jnp.bfloat16(0.5), np.float64(0.5)]
)
def test_numbers_of_numpy_and_jax_are_numbers(value):
    assert total_reward(lambda row, completion, *, finished: value, {}, "text", True) == {"total": 0.5}


@pytest.mark.parametrize("value", [True, np.bool_(True)])
def test_true_is_one(value):
    assert total_reward(lambda row, completion, *, finished: value, {}, "text", True) == {"total": 1.0}


# ---- in threads, with a limit


def test_scores_are_in_the_order_of_the_replies_whoever_is_ready_first():
    def reward(row, completion, *, finished):
        time.sleep(row["wait"])
        return len(completion) + 10 * finished

    rows, texts, done = [{"wait": 0.2}, {"wait": 0.0}, {"wait": 0.1}], ["a", "bb", ""], np.array([True, False, True])
    for limit in (0.0, 60.0):
        scores, late, _ = score_texts(reward, rows, texts, done, Workers(3, limit))
        np.testing.assert_array_equal(scores, [11.0, 2.0, 10.0])
        assert late == [] and scores.dtype == np.float32


def test_a_reply_that_is_not_scored_in_time_has_no_score_and_the_next_batch_has_new_threads():
    stop = threading.Event()

    def reward(row, completion, *, finished):
        if row["hangs"]:
            stop.wait(60)
        return 1.0

    workers = Workers(1, 0.3)  # which the second reply keeps busy: the third waits behind it
    rows = [{"hangs": False}, {"hangs": True}, {"hangs": False}]
    scores, late, _ = score_texts(reward, rows, ["a"] * 3, np.ones(3, bool), workers)
    np.testing.assert_array_equal(np.isnan(scores), [False, True, True])
    assert late == [1, 2]
    scores, late, _ = score_texts(reward, rows[:1] * 2, ["a"] * 2, np.ones(2, bool), workers)
    np.testing.assert_array_equal(scores, [1.0, 1.0])
    assert late == []
    stop.set()


@pytest.mark.parametrize("limit", [0.0, 60.0])
def test_what_a_reward_raises_comes_out(limit):
    def reward(row, completion, *, finished):
        raise KeyError("answer")

    with pytest.raises(KeyError, match="answer"):
        score_texts(reward, [{}], ["a"], np.ones(1, bool), Workers(2, limit))


@pytest.mark.parametrize("limit", [0.0, 60.0])
def test_none_is_a_missing_score_and_not_a_late_one(limit):
    silent = lambda row, completion, *, finished: None  # noqa: E731
    scores, late, _ = score_texts(silent, [{}], ["a"], np.ones(1, bool), Workers(2, limit))
    assert np.isnan(scores).all() and late == []


def test_what_had_not_begun_when_the_time_was_over_is_dropped():
    begun, go = [], threading.Event()

    def reward(row, completion, *, finished):
        begun.append(completion)
        go.wait(5.0)
        return 1.0

    scores, late, _ = score_texts(reward, [{}] * 6, list("abcdef"), np.ones(6, bool), Workers(2, 0.2))
    assert late == [0, 1, 2, 3, 4, 5] and np.isnan(scores).all()
    go.set()
    time.sleep(0.2)
    assert sorted(begun) == ["a", "b"]


# ---- calls that fail


def flaky(row, completion, *, finished):
    """Raises for the first `row["fails"]` calls of a row, then is 1."""
    row["calls"] = row.get("calls", 0) + 1
    if row["calls"] <= row["fails"]:
        raise OSError(f"no answer {row['calls']}")
    return 1.0


@pytest.mark.parametrize("limit", [0.0, 60.0])
def test_a_call_that_fails_is_made_again_and_then_its_reply_has_no_score(limit):
    rows = [{"fails": 0}, {"fails": 2}, {"fails": 3}]
    found = score_texts(flaky, rows, list("abc"), np.ones(3, bool), Workers(2, limit), trouble=Trouble(2, True))
    np.testing.assert_array_equal(found.values, [1.0, 1.0, np.nan])
    assert [row["calls"] for row in rows] == [1, 3, 3]
    assert found.late == [] and list(found.failed) == [2] and "no answer 3" in str(found.failed[2])


def test_a_call_that_goes_on_failing_comes_out_where_it_has_to_stop():
    row = {"fails": 9}
    with pytest.raises(OSError, match="no answer 2"):
        score_texts(flaky, [row], ["a"], np.ones(1, bool), Workers(2, 60.0), trouble=Trouble(1))
    assert row["calls"] == 2


@pytest.mark.parametrize("value", UNFIT)
def test_what_is_no_number_is_a_failure_too(value):
    found = score_texts(
        lambda row, completion, *, finished: value, [{}], ["text"], np.ones(1, bool), Workers(1, 0.0),
        trouble=Trouble(0, True),
    )  # fmt: skip
    assert np.isnan(found.values).all() and "'text'" in str(found.failed[0])


def test_a_package_that_is_missing_stops_whatever_is_configured():
    def reward(row, completion, *, finished):
        raise ImportError("no such package")

    with pytest.raises(ImportError, match="no such package"):
        score_texts(reward, [{}], ["a"], np.ones(1, bool), Workers(1, 0.0), trouble=Trouble(3, True))


# ---- groups


def longest(rows, completions, *, finished, value=1.0):
    """`value` for the longest reply of a group, 0 for the others."""
    lengths = [len(text) for text in completions]
    return [value * (n == max(lengths)) for n in lengths]


def test_a_reward_of_whole_groups_is_called_once_for_each():
    calls = []

    def reward(rows, completions, *, finished):
        calls.append((rows[0]["id"], len(rows), list(completions), list(finished)))
        return longest(rows, completions, finished=finished)

    rows, done = [{"id": 0}] * 3 + [{"id": 1}] * 3, np.array([1, 0, 1, 1, 1, 0], bool)
    found = score_texts(reward, rows, ["a", "bbb", "cc", "d", "e", "ff"], done, Workers(1, 0.0), group=3)
    np.testing.assert_array_equal(found.values, [0, 1, 0, 0, 0, 1])
    assert calls == [(0, 3, ["a", "bbb", "cc"], [True, False, True]), (1, 3, ["d", "e", "ff"], [True, True, False])]


@pytest.mark.parametrize("value, words", [([1.0, 2.0], ("2 values", "3 replies")), (1.0, ("3 replies", "list of 3")),
                                          ([], ("0 values",)), ({"total": 1.0}, ("list of 3",))])  # fmt: skip
def test_another_number_of_values_than_of_replies_is_named(value, words):
    def too_few(rows, completions, *, finished):
        return value

    given = [{}] * 3, ["a", "b", "c"], np.ones(3, bool), Workers(1, 0.0)
    with refuses(ValueError, "'too_few'", *words):
        score_texts(too_few, *given, group=3)
    found = score_texts(too_few, *given, group=3, trouble=Trouble(0, True))
    assert np.isnan(found.values).all() and list(found.failed) == [0, 1, 2]


def test_a_reply_of_a_group_may_have_no_score():
    some = lambda rows, completions, *, finished: np.array([1.0, np.nan])  # noqa: E731
    none = lambda rows, completions, *, finished: [None, 2.0]  # noqa: E731
    given = [{}] * 2, ["a", "b"], np.ones(2, bool), Workers(1, 0.0)
    np.testing.assert_array_equal(score_texts(some, *given, group=2).values, [1.0, np.nan])
    np.testing.assert_array_equal(score_texts(none, *given, group=2).values, [np.nan, 2.0])


def test_one_reply_is_a_group_of_one_where_one_is_asked_for():
    assert total_reward(longest, {}, "text", True) == {"total": 1.0}


# ---- async


def test_async_rewards_run_side_by_side_as_many_as_there_are_workers():
    now, most = 0, 0

    async def reward(row, completion, *, finished):
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        await asyncio.sleep(0.05)
        now -= 1
        return float(len(completion))

    texts = ["a" * (i + 1) for i in range(8)]
    for limit in (0.0, 60.0):
        begun = time.monotonic()
        found = score_texts(reward, [{}] * 8, texts, np.ones(8, bool), Workers(4, limit))
        np.testing.assert_array_equal(found.values, np.arange(1, 9))
        assert most == 4 and time.monotonic() - begun < 8 * 0.05  # one by one they would take that long
    assert total_reward(reward, {}, "four", True) == {"total": 4.0}


def test_an_async_reward_that_is_late_has_no_score_even_where_it_blocks_the_loop():
    async def waits(row, completion, *, finished):
        await asyncio.sleep(60.0 * row["hangs"])
        return 1.0

    async def blocks(row, completion, *, finished):
        if row["hangs"]:
            stop.wait(30)
        return 1.0

    stop, rows = threading.Event(), [{"hangs": False}, {"hangs": True}]
    for reward in (waits, blocks):
        workers = Workers(2, 0.2)
        found = score_texts(reward, rows, ["a", "b"], np.ones(2, bool), workers)
        np.testing.assert_array_equal(found.values, [1.0, np.nan])
        assert found.late == [1]
        again = score_texts(reward, rows[:1], ["a"], np.ones(1, bool), workers)
        np.testing.assert_array_equal(again.values, [1.0])
    stop.set()


def test_the_event_loop_lasts_from_batch_to_batch():
    loops = set()

    async def reward(row, completion, *, finished):
        loops.add(asyncio.get_running_loop())
        return 1.0

    workers = Workers(2, 10.0)
    for _ in range(2):
        score_texts(reward, [{}], ["a"], np.ones(1, bool), workers)
    assert len(loops) == 1


def test_async_groups_and_failures_are_as_those_of_threads():
    async def reward(rows, completions, *, finished):
        if rows[0]["fails"]:
            raise TimeoutError("no answer")
        return longest(rows, completions, finished=finished)

    rows, texts = [{"fails": True}] * 2 + [{"fails": False}] * 2, ["a", "bb", "c", "dd"]
    found = score_texts(reward, rows, texts, np.ones(4, bool), Workers(2, 5.0), group=2, trouble=Trouble(1, True))
    np.testing.assert_array_equal(found.values, [np.nan, np.nan, 0.0, 1.0])
    assert list(found.failed) == [0, 1] and found.late == []
    with pytest.raises(TimeoutError, match="no answer") as caught:
        score_texts(reward, rows, texts, np.ones(4, bool), Workers(2, 5.0), group=2)
    assert "'fails': True" in caught.value.__notes__[-1]


# ---- TRL's form


def trl_reward(prompts, completions, answer, log_extra=None, **columns):
    """As its documentation has them: columns of the data by name, the rest unread."""
    log_extra("answer", answer)
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [None if a is None else float(a in text) for text, a in zip(texts, answer, strict=True)]


async def async_trl_reward(completions, **columns):
    return [float(len(text)) for text in completions]


def test_a_reward_function_of_trl_works_unchanged():
    reward = bound("alignax.rewards.trl:trl", {"reward": trl_reward}, key="x", given=("finished",))
    rows = [{"prompt": "1 + 1", "answer": "2", "kind": "sum"}] * 2 + [{"prompt": "?", "answer": None, "kind": "x"}] * 2
    found = score_texts(reward, rows, ["2", "3", "a", "b"], np.ones(4, bool), Workers(2, 5.0), group=2)
    np.testing.assert_array_equal(found.values, [1.0, 0.0, np.nan, np.nan])
    chat = [{"prompt": [{"role": "user", "content": "1 + 1"}], "answer": "2"}]
    assert trl(chat, ["it is 2"], finished=[True], reward=trl_reward) == [1.0]
    assert trl(rows[:1], ["four"], finished=[True], reward=async_trl_reward) == [4.0]
