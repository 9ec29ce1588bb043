"""Annotators: the probability, its limits, and the labels drawn from it."""

import math

import numpy as np
import pytest

from alignax.stages.collect import judge
from alignax.worlds import harbor
from alignax.worlds.annotators import Annotator, prefer, preference, utility_gap
from alignax.worlds.gold import PARTS, gold

GOOD = dict.fromkeys(PARTS, 0.0) | {"helpful": 2.0, "warm": 0.5}
BAD = dict.fromkeys(PARTS, 0.0) | {"honest": -1.0}


def test_bradley_terry_probability_by_hand():
    # gap = 2 + 0.5 + 1 + 0.1 * (10 - 25) = 2, so sigma(2 / 2) = sigma(1); then 20 % of labels are a fair coin
    annotator = Annotator(temperature=2.0, flips=0.2, length_bias=0.1)
    expected = 0.8 / (1 + math.exp(-1.0)) + 0.1
    assert preference(annotator, GOOD, BAD, 10, 25) == pytest.approx(expected)
    assert preference(annotator, BAD, GOOD, 25, 10) == pytest.approx(1 - expected)


def test_deterministic_and_its_ties():
    annotator = Annotator(mode="deterministic")
    assert preference(annotator, GOOD, BAD, 1, 1) == 1.0
    assert preference(annotator, BAD, GOOD, 1, 1) == 0.0
    assert preference(annotator, GOOD, GOOD, 1, 9) == 0.5
    assert preference(Annotator(mode="deterministic", flips=0.4), GOOD, BAD, 1, 1) == pytest.approx(0.8)


def test_cold_bradley_terry_is_deterministic_without_overflow():
    assert preference(Annotator(temperature=1e-6), GOOD, BAD, 1, 1) == 1.0
    assert preference(Annotator(temperature=1e-6), BAD, GOOD, 1, 1) == 0.0


def test_position_bias_favours_the_first():
    biased = Annotator(position_bias=0.5)
    assert preference(biased, GOOD, GOOD, 5, 5) == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_the_utility_gap_is_what_the_label_is_drawn_from():
    biased = Annotator(length_bias=0.1, position_bias=0.2)
    gap = utility_gap(biased, GOOD, BAD, 4, 1)
    assert gap == pytest.approx(sum(GOOD[part] - BAD[part] for part in PARTS) + 0.1 * 3 + 0.2)
    assert preference(biased, GOOD, BAD, 4, 1) == pytest.approx(1 / (1 + math.exp(-gap)))


def test_small_gaps_are_ties_if_asked_and_the_strength_is_told():
    gold = lambda row, text, *, finished: GOOD | {"total": 1.0} if text == "good" else BAD | {"total": 0.0}  # noqa: E731
    told = lambda **options: judge(  # noqa: E731
        Annotator(mode="deterministic", **options), gold, {"prompt": "p"}, ["bad", "good"], [True, True],
        np.random.default_rng(0),
    )  # fmt: skip
    gap = sum(GOOD[part] - BAD[part] for part in PARTS)
    assert told()["margin"] == pytest.approx(gap) and told()["chosen"] == "good" and told()["tie"] is False
    assert told(tie_below=gap + 0.01)["tie"] is True and told(tie_below=gap - 0.01)["tie"] is False
    with pytest.raises(ValueError, match="tie_below -1"):
        Annotator(tie_below=-1.0)


def test_part_weights():
    only_warm = Annotator(weights=tuple((part, float(part == "warm")) for part in PARTS))
    assert preference(only_warm, GOOD, BAD, 1, 1) == pytest.approx(1 / (1 + math.exp(-0.5)))


def test_labels_have_the_stated_frequency():
    annotator, rng = Annotator(flips=0.1), np.random.default_rng(0)
    share = np.mean([prefer(annotator, GOOD, BAD, 1, 1, rng) for _ in range(4000)])
    p = preference(annotator, GOOD, BAD, 1, 1)
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 4000)


def test_bradley_terry_agrees_with_gold_as_people_do():
    """A T = 1 annotator agrees with gold on 70 to 82 % of pairs of replies (people with people: 73 to 77 %)."""
    rng, agree, gaps = np.random.default_rng(0), [], []
    for row in harbor.prompts("reward", 1000, 0):
        a, b = (gold(row, reply) for reply in harbor.replies(row, 2, 0))
        gap = a["total"] - b["total"]
        gaps.append(abs(gap))
        agree.append(prefer(Annotator(), a, b, 1, 1, rng) == (gap > 0))
    assert 1.3 <= np.mean(gaps) <= 1.7
    assert 0.70 <= np.mean(agree) <= 0.82


@pytest.mark.parametrize(
    ("field", "value"), [("mode", "oracle"), ("temperature", 0.0), ("flips", 1.5), ("weights", (("polite", 1.0),))]
)
def test_impossible_annotators_are_refused(field, value):
    with pytest.raises(ValueError, match=f"annotator {field}"):
        Annotator(**{field: value})
