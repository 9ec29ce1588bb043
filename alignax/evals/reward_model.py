"""How good a reward model is: held-out accuracy, likelihood, calibration, and what the annotators make possible."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from alignax.evals.intervals import bootstrap


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
