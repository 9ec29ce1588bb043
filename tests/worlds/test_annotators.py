"""Annotators: the probability, its limits, and the labels drawn from it."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from alignax.stages.collect import judge
from alignax.worlds import harbor
from alignax.worlds.annotators import Annotator, prefer, preference, rank, utility_gap
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


FAIR = dict.fromkeys(PARTS, 0.0) | {"helpful": 1.0}
SEEN, LENGTHS = [BAD, GOOD, FAIR], [4, 9, 1]  # utilities -1, 2.5 and 1 without biases


def orders(annotator, n, seed=0):
    """How often each order of SEEN comes in `n` rankings."""
    rng = np.random.default_rng(seed)
    return Counter(tuple(rank(annotator, SEEN, LENGTHS, rng)) for _ in range(n))


def close_to(share, p, n):
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n), (share, p)


@pytest.mark.parametrize("flips", [0.0, 0.3])
def test_rankings_are_plackett_luce_in_the_utilities(flips):
    annotator, n = Annotator(temperature=2.0, flips=flips, length_bias=0.1, position_bias=0.5), 20_000
    worth = [math.exp(u / 2.0) for u in (-1 + 0.4 + 0.5, 2.5 + 0.9, 1 + 0.1)]  # the first is the one shown first
    found = orders(annotator, n)
    for order in itertools.permutations(range(3)):
        rest = [sum(worth[i] for i in order[k:]) for k in range(3)]
        clean = math.prod(worth[i] / total for i, total in zip(order, rest))
        close_to(found[order] / n, (1 - flips) * clean + flips / 6, n)


@pytest.mark.parametrize("flips", [0.0, 0.3])
def test_any_two_replies_of_a_ranking_stand_as_in_a_pair(flips):
    annotator, n = Annotator(flips=flips, length_bias=0.1), 20_000
    found = orders(annotator, n)
    for i, j in itertools.combinations(range(3), 2):
        share = sum(number for order, number in found.items() if order.index(i) < order.index(j)) / n
        close_to(share, preference(annotator, SEEN[i], SEEN[j], LENGTHS[i], LENGTHS[j]), n)


def test_a_deterministic_annotator_sorts_and_breaks_ties_at_random():
    annotator, rng = Annotator(mode="deterministic"), np.random.default_rng(0)
    assert orders(annotator, 50) == {(1, 2, 0): 50}
    ties = Counter(tuple(rank(annotator, [GOOD, BAD, GOOD], [1, 1, 1], rng)) for _ in range(2000))
    assert set(ties) == {(0, 2, 1), (2, 0, 1)}
    close_to(ties[0, 2, 1] / 2000, 0.5, 2000)


def test_a_ranking_draws_as_many_numbers_whatever_the_annotator():
    """So that the rankings of two annotators over many prompts stay paired."""
    after = []
    for options in ({}, {"mode": "deterministic"}, {"flips": 1.0}):
        rng = np.random.default_rng(0)
        rank(Annotator(**options), SEEN, LENGTHS, rng)
        after.append(rng.random())
    assert len(set(after)) == 1
