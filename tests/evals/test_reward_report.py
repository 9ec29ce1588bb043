"""Reports of reward models from margins made by hand."""

import numpy as np
import pytest

from alignax.evals.reward_model import calibration, report


def test_report_by_hand():
    # margins 1, -1, 0, 2: a tie is no success, so 2 of 4. nll: mean log(1 + e^-m)
    out = report(np.array([1.0, -1.0, 0.0, 2.0]), [{}] * 4)
    assert out["heldout_accuracy"] == 0.5 and out["pairs"] == 4
    np.testing.assert_allclose(out["nll"], (0.313262 + 1.313262 + 0.693147 + 0.126928) / 4, atol=1e-6)
    low, high = out["heldout_accuracy_ci95"]
    assert 0 <= low < 0.5 < high <= 1
    assert not {"gold_accuracy", "bayes_accuracy"} & out.keys()


def test_gold_accuracy_leaves_ties_out_and_bayes_accuracy_is_the_mean_of_the_likelier_side():
    rows = [
        {"gold_chosen": 2.0, "gold_rejected": 1.0, "p_chosen": 0.9},  # margin 1: agrees
        {"gold_chosen": 0.0, "gold_rejected": 3.0, "p_chosen": 0.2},  # margin -1: agrees (the label was a mistake)
        {"gold_chosen": 1.0, "gold_rejected": 0.0, "p_chosen": 0.6},  # margin -2: disagrees
        {"gold_chosen": 1.0, "gold_rejected": 1.0, "p_chosen": 0.5},  # a tie of the gold rewards
    ]
    out = report(np.array([1.0, -1.0, -2.0, 5.0]), rows)
    np.testing.assert_allclose(out["gold_accuracy"], 2 / 3)
    np.testing.assert_allclose(out["bayes_accuracy"], (0.9 + 0.8 + 0.6 + 0.5) / 4)
    assert out["heldout_accuracy"] == 0.5


def test_a_key_that_some_rows_lack_is_not_reported():
    out = report(np.ones(2), [{"p_chosen": 0.9, "gold_chosen": 1.0}, {"gold_chosen": 1.0, "gold_rejected": 0.0}])
    assert not {"gold_accuracy", "bayes_accuracy"} & out.keys()


def test_calibration_by_hand():
    # confidences 0.6, 0.6 (one right), 0.9, 0.9 (both right) in two bins: |0.6 - 0.5| / 2 + |0.9 - 1| / 2 = 0.1
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    margins = np.array([logit(0.9), -logit(0.6), logit(0.6), logit(0.9)])
    rows, ece = calibration(margins, bins=2)
    np.testing.assert_allclose([list(row.values()) for row in rows], [[0.6, 0.5, 2], [0.9, 1.0, 2]])
    np.testing.assert_allclose(ece, 0.1)


def test_calibrated_margins_have_a_small_error_and_overconfident_ones_a_large_one():
    # labels drawn from sigmoid(margin): ECE of 20000 pairs in 10 bins is sampling noise, about 0.8 * 0.5 / 2000^0.5
    rng = np.random.default_rng(0)
    size = np.abs(rng.normal(0, 1.5, 20_000))
    margins = np.where(rng.uniform(size=size.size) < 1 / (1 + np.exp(-size)), size, -size)
    assert calibration(margins)[1] < 0.02 < 0.1 < calibration(3 * margins)[1]


@pytest.mark.parametrize("pairs", [1, 3, 10, 25])
def test_bins_hold_every_pair_once(pairs):
    rows, _ = calibration(np.random.default_rng(0).normal(size=pairs))
    assert sum(row["count"] for row in rows) == pairs and len(rows) == min(10, pairs)
    assert max(row["count"] for row in rows) - min(row["count"] for row in rows) <= 1
    predicted = [row["predicted"] for row in rows]
    assert predicted == sorted(predicted) and min(predicted) >= 0.5
