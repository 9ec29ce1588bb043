"""Worked sums with verdicts: judged by hand and by arithmetic of the test's own, wrong as often as asked."""

import operator
import re

import numpy as np
import pytest
from errors import refuses

from alignax.worlds.gold import verdicts
from alignax.worlds.sources import worked_sums

OPERATIONS = {"plus": operator.add, "minus": operator.sub, "times": operator.mul}
ASKED = "mara asks : start 3 , plus 4 , times 2 ."  # 3 + 4 = 7, 7 * 2 = 4 modulo 10


@pytest.mark.parametrize(
    "said, expected",
    [
        (["3 plus 4 is 7 .", "7 times 2 is 4 .", "answer 4 ."], [True, True, True]),
        (["3 plus 4 is 8 .", "8 times 2 is 6 .", "answer 6 ."], [False, True, False]),  # right from a wrong digit
        (["3 plus 4 is 8 .", "8 times 2 is 6 .", "answer 4 ."], [False, True, True]),
        (["3 plus 4 is 7 .", "3 times 2 is 6 .", "answer 4 ."], [True, False, True]),  # not from the digit before
        (["3 plus 5 is 8 .", "answer 4 .", "hello mara ."], [False, True, False]),  # not what was asked; no step
    ],
)
def test_verdicts_by_hand(said, expected):
    assert verdicts(ASKED, said) == expected


def test_rows_are_replies_in_steps_with_the_verdicts_of_arithmetic():
    rows, counts = worked_sums(split="train", count=300, seed=1)
    assert counts == {"rows": 300, "kept": 300}
    for row in rows:
        start, *asked = re.findall(r"(?:start|plus|minus|times) \d", row["prompt"])
        value = true = int(start[-1])
        *steps, answer = "".join(row["steps"]).removesuffix(" .").split(" . ")
        assert len(steps) == len(asked) == len(row["steps"]) - 1 == len(row["verdicts"]) - 1
        for step, question, verdict in zip(steps, asked, row["verdicts"]):
            operation, number = question.split()
            stated = int(step[-1])
            assert step[:-1] == f"{value} {operation} {number} is "
            assert verdict == (stated == OPERATIONS[operation](value, int(number)) % 10)
            value, true = stated, OPERATIONS[operation](true, int(number)) % 10
        assert row["verdicts"][-1] == (answer == f"answer {true}")


@pytest.mark.parametrize("error_rate", [0.0, 0.3, 0.9])
def test_clerks_err_at_the_rate_asked(error_rate):
    rows, _ = worked_sums(split="train", count=2000, error_rate=error_rate)
    wrong = np.array([not verdict for row in rows for verdict in row["verdicts"][:-1]])
    assert abs(wrong.mean() - error_rate) <= 4 * (error_rate * (1 - error_rate) / len(wrong)) ** 0.5


def test_held_out_sums_are_others_and_a_rate_that_cannot_be_is_refused():
    train, held = (worked_sums(split=split, count=400, heldout=200)[0] for split in ("train", "heldout"))
    assert len(held) == 200
    contents = [{row["prompt"].partition("asks")[2] for row in rows} for rows in (train, held)]
    assert not contents[0] & contents[1]
    with refuses(ValueError, "error_rate = 0.95", "[0, 0.9]"):
        worked_sums(split="train", count=1, error_rate=0.95)
