"""Rewards over text: what counts as a number, what as a missing one, and what comes too late."""

import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses

from alignax.rewards.text import Workers, score_texts, total_reward


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
        scores, late = score_texts(reward, rows, texts, done, Workers(3, limit))
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
    scores, late = score_texts(reward, rows, ["a"] * 3, np.ones(3, bool), workers)
    np.testing.assert_array_equal(np.isnan(scores), [False, True, True])
    assert late == [1, 2]
    scores, late = score_texts(reward, rows[:1] * 2, ["a"] * 2, np.ones(2, bool), workers)
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
    scores, late = score_texts(silent, [{}], ["a"], np.ones(1, bool), Workers(2, limit))
    assert np.isnan(scores).all() and late == []


def test_what_had_not_begun_when_the_time_was_over_is_dropped():
    begun, go = [], threading.Event()

    def reward(row, completion, *, finished):
        begun.append(completion)
        go.wait(5.0)
        return 1.0

    scores, late = score_texts(reward, [{}] * 6, list("abcdef"), np.ones(6, bool), Workers(2, 0.2))
    assert late == [0, 1, 2, 3, 4, 5] and np.isnan(scores).all()
    go.set()
    time.sleep(0.2)
    assert sorted(begun) == ["a", "b"]
