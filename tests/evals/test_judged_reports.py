"""Reports of reward models on rankings, ratings and steps, from records made by hand."""

import numpy as np
import pytest

from alignax.evals.intervals import bootstrap
from alignax.evals.reward_model import ranking_report, rating_report, step_report
from alignax.losses.ordinal import ordinal
from alignax.losses.regression import regression
from alignax.types import Ranked, Rated, Stepwise


def test_rankings_by_hand():
    # row 0: pairs 3 > 1, 3 > 2 right, 1 > 2 wrong; row 1: two replies, a tie; row 2: reversed
    score = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 9.0], [0.0, 1.0, 2.0]])
    mask = np.array([[True] * 3, [True, True, False], [True] * 3])
    rows = [{"gold": [2.0, 1.0, 1.0]}, {"gold": [0.0, 1.0]}, {"gold": [0.0, 1.0, 2.0]}]
    out = ranking_report(Ranked(score=score, mask=mask), rows)
    assert out["heldout_accuracy"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert out["top1_accuracy"] == pytest.approx(1 / 3) and out["top1_chance"] == pytest.approx(
        (1 / 3 + 1 / 2 + 1 / 3) / 3
    )
    # gold: 2 of 2 untied pairs of row 0, a tied score of row 1 (no agreement), 3 of 3 of row 2, whose order was wrong
    assert out["gold_accuracy"] == pytest.approx(5 / 6)
    assert out["rankings"] == 3 and out["top1_accuracy_ci95"] == bootstrap([1.0, 0.0, 0.0])
    assert "gold_accuracy" not in ranking_report(Ranked(score=score, mask=mask), [{}] * 3)


def test_ratings_by_hand():
    score = np.array([[1.0, 5.0], [2.0, 7.0], [4.0, 0.0]], np.float32)
    target = np.array([[2.0, 0.0], [4.0, 6.0], [8.0, 0.0]], np.float32)
    rated = Rated(score=score, target=target, mask=np.array([[True, False], [True, True], [True, False]]))
    out = rating_report(rated, regression(rated).metrics, ("helpful", "warm"))
    assert out["absolute_error"] == pytest.approx((1 + 2 + 4 + 1) / 4) and out["ratings"] == 4
    assert out["attributes"]["helpful"]["absolute_error"] == pytest.approx(7 / 3)
    assert out["attributes"]["helpful"]["correlation"] == pytest.approx(1.0)
    assert out["attributes"]["warm"]["correlation"] is None and out["attributes"]["warm"]["absolute_error"] == 1.0
    assert out["correlation"] == pytest.approx(1.0)  # over the attributes that have one
    assert out["attributes"]["helpful"]["absolute_error_ci95"] == bootstrap([1.0, 2.0, 4.0])


def test_an_error_is_in_the_units_in_which_the_loss_reads_a_score():
    # cutpoints -1.5, -0.5, 0.5, 1.5: scores 3 and 0 have the median grades 4 and 2, whatever their size
    rated = Rated(score=np.array([[3.0], [0.0]], np.float32), target=np.array([[4.0], [1.0]], np.float32),
                  mask=np.ones((2, 1), bool))  # fmt: skip
    out = rating_report(rated, ordinal(rated).metrics, ("warm",))
    assert out["absolute_error"] == 0.5 and out["accuracy"] == 0.5


def test_steps_by_hand():
    # right steps: 3, of which 2 are found; wrong ones: 1, found; so 3 of 4, and 1/2 (2/3 + 1) balanced
    logit = np.array([[9.0, 1.0, -1.0, 2.0], [9.0, -3.0, 9.0, 9.0]])
    target = np.array([[0.0, 1.0, 0.6, 1.0], [0.0, 0.2, 0.0, 0.0]])
    mask = np.array([[False, True, True, True], [False, True, False, False]])
    out = step_report(Stepwise(logit=logit, target=target, mask=mask))
    assert out["accuracy"] == 0.75 and out["base_rate"] == 0.75
    assert out["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert out["steps"] == 4 and out["replies"] == 2
    low, high = out["accuracy_ci95"]
    assert (low, high) == pytest.approx((2 / 3, 1.0))  # all draws are of reply 0 alone, 1 alone, or both
    alone = step_report(Stepwise(logit=logit, target=target, mask=mask & (target > 0.5)))
    assert alone["balanced_accuracy"] is None and alone["base_rate"] == 1.0


def test_equal_weights_are_no_weights():
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap(values, weights=np.full(30, 2.0)) == pytest.approx(bootstrap(values), rel=1e-12)
