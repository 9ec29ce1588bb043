"""How good a reward model is on held-out data: pairs, rankings, ratings by attribute, and steps.

For pairs accuracy, likelihood, calibration, and what the annotators make possible. No share of right answers says much
without what guessing gives, so that stands beside it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from alignax.evals.intervals import bootstrap
from alignax.types import Ranked, Rated, Stepwise


def report(margins: np.ndarray, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of held-out pairs from the score margins chosen - rejected, one per row.

    heldout_accuracy: share of pairs where the chosen side scores strictly higher; nll: mean -log sigmoid(margin), nats;
    ece and calibration: see `calibration`. Where the rows record it: gold_accuracy, agreement with the order of the
    gold rewards (`gold_chosen`, `gold_rejected`; ties left out); bayes_accuracy, the mean of max(p, 1 - p) over the
    annotator's own probabilities `p_chosen`, which no model can beat in expectation.
    """
    margins = np.asarray(margins, np.float64)
    right = (margins > 0).astype(float)
    bins, ece = calibration(margins)
    out = {
        "heldout_accuracy": float(right.mean()),
        "heldout_accuracy_ci95": bootstrap(right),
        "nll": float(np.logaddexp(0.0, -margins).mean()),
        "ece": ece,
        "calibration": bins,
        "pairs": len(margins),
    }
    if rows and all("gold_chosen" in row and "gold_rejected" in row for row in rows):
        gap = np.array([row["gold_chosen"] - row["gold_rejected"] for row in rows])
        out["gold_accuracy"] = float((np.sign(margins) == np.sign(gap))[gap != 0].mean())
    if rows and all("p_chosen" in row for row in rows):
        p = np.array([row["p_chosen"] for row in rows])
        out["bayes_accuracy"] = float(np.maximum(p, 1 - p).mean())
    return out


def calibration(margins: np.ndarray, bins: int = 10) -> tuple[list[dict[str, float]], float]:
    """Reliability of P(chosen preferred) = sigmoid(margin), and the expected calibration error.

    A pair has no natural order, so each is read towards the side that the model prefers: confidence sigmoid(|margin|)
    in [0.5, 1], right where that side was chosen. Bins hold equal numbers of pairs; ECE is the mean over pairs of
    |mean confidence - share right| of their bin.
    """
    confidence, right = 1 / (1 + np.exp(-np.abs(margins))), margins > 0
    parts = [part for part in np.array_split(np.argsort(confidence, kind="stable"), bins) if len(part)]
    rows = [
        {"predicted": float(confidence[p].mean()), "observed": float(right[p].mean()), "count": len(p)} for p in parts
    ]
    ece = sum(row["count"] * abs(row["predicted"] - row["observed"]) for row in rows) / len(margins)
    return rows, float(ece)


def ranking_report(ranked: Ranked, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metrics of held-out rankings, one of `rows` each; a tie of two scores is no success.

    heldout_accuracy: share of the pairs of a ranking that score in the annotator's order, mean over rankings (0.5 by
    guessing); top1_accuracy: share of rankings whose first reply scores highest, with top1_chance, the mean of 1 / K.
    Where every row records the gold rewards of its replies (`gold`, in the annotator's order): gold_accuracy, agreement
    with their order over all pairs without a tie. Intervals are over prompts.
    """
    score_BK, mask_BK = np.asarray(ranked.score, np.float64), np.asarray(ranked.mask)
    pair_BKK = mask_BK[:, :, None] & mask_BK[:, None, :] & np.triu(np.ones((score_BK.shape[1],) * 2, bool), 1)
    margin_BKK = score_BK[:, :, None] - score_BK[:, None, :]
    right_B = (pair_BKK & (margin_BKK > 0)).sum((1, 2)) / pair_BKK.sum((1, 2))
    best_B = (score_BK[:, :1] > np.where(mask_BK, score_BK, -np.inf)[:, 1:]).all(1).astype(float)
    out = {
        "heldout_accuracy": float(right_B.mean()),
        "heldout_accuracy_ci95": bootstrap(right_B),
        "top1_accuracy": float(best_B.mean()),
        "top1_accuracy_ci95": bootstrap(best_B),
        "top1_chance": float((1 / mask_BK.sum(1)).mean()),
        "rankings": len(score_BK),
    }
    golds = [row.get("gold") for row in rows]
    if golds and all(isinstance(gold, list) and len(gold) == n for gold, n in zip(golds, mask_BK.sum(1), strict=True)):
        gold_BK = np.zeros(score_BK.shape)
        gold_BK[mask_BK] = np.concatenate([row["gold"] for row in rows])
        gap_BKK = gold_BK[:, :, None] - gold_BK[:, None, :]
        decided_BKK = pair_BKK & (gap_BKK != 0)
        if decided_BKK.any():
            out["gold_accuracy"] = float((np.sign(margin_BKK) == np.sign(gap_BKK))[decided_BKK].mean())
    return out


def rating_report(rated: Rated, metrics: Mapping[str, tuple], attributes: Sequence[str]) -> dict[str, Any]:
    """Metrics of held-out ratings, and for each of `attributes` the same.

    `metrics` are the loss's own of this record, (values, weights), so that an error is in the units in which the loss
    reads a score; those of the shape [B A] are given as means over the ratings. correlation: Pearson's, of score and
    rating over replies, None where one of them is constant; above, the mean over the attributes that have one.
    Intervals are over replies.
    """
    given_BA = np.asarray(rated.mask)
    found = {name: np.asarray(x, np.float64) for name, (x, _) in metrics.items() if np.shape(x) == given_BA.shape}
    score_BA, target_BA = np.asarray(rated.score, np.float64), np.asarray(rated.target, np.float64)
    each = {}
    for a, attribute in enumerate(attributes):
        given_B = given_BA[:, a]
        columns = {name: values_BA[given_B, a] for name, values_BA in found.items() if given_B.any()}
        each[attribute] = {name: float(values.mean()) for name, values in columns.items()}
        each[attribute] |= {f"{name}_ci95": bootstrap(values) for name, values in columns.items()}
        each[attribute] |= {"correlation": _correlation(score_BA[given_B, a], target_BA[given_B, a])}
        each[attribute] |= {"ratings": int(given_B.sum())}
    known = [one["correlation"] for one in each.values() if one["correlation"] is not None]
    out = {name: float(values_BA[given_BA].mean()) for name, values_BA in found.items()}
    return out | {
        "correlation": float(np.mean(known)) if known else None,
        "ratings": int(given_BA.sum()),
        "attributes": each,
    }


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    constant = len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
    return None if constant else float(np.corrcoef(x, y)[0, 1])


def step_report(stepwise: Stepwise) -> dict[str, Any]:
    """Metrics of held-out steps; a step counts as right where its target exceeds 1/2, and as judged right where z > 0.

    accuracy, over all steps, with its interval over replies; base_rate: share of right steps, so that saying always the
    same has the accuracy max(base_rate, 1 - base_rate); balanced_accuracy: mean of the shares found among the right and
    among the wrong steps, 0.5 by guessing, None where all verdicts are the same.
    """
    mask_BT = np.asarray(stepwise.mask)
    right_BT = np.asarray(stepwise.target) > 0.5
    hit_BT = mask_BT & ((np.asarray(stepwise.logit) > 0) == right_BT)
    steps_B, hits_B = mask_BT.sum(1), hit_BT.sum(1)
    right, wrong = mask_BT & right_BT, mask_BT & ~right_BT
    both = right.any() and wrong.any()
    recalls = [hit_BT[kind].mean() for kind in (right, wrong)] if both else []
    return {
        "accuracy": float(hits_B.sum() / steps_B.sum()),
        "accuracy_ci95": bootstrap(hits_B / steps_B, weights=steps_B),
        "balanced_accuracy": float(np.mean(recalls)) if both else None,
        "base_rate": float(right.sum() / mask_BT.sum()),
        "steps": int(mask_BT.sum()),
        "replies": len(mask_BT),
    }
