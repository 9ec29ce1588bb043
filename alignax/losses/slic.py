"""Sequence likelihood calibration with human feedback."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import pair_metrics, pair_weight, summed_logp
from alignax.types import Loss, Pair


def slic(pair: Pair, *, delta: Scalar = 1.0, regularization: Scalar = 0.1) -> Loss:
    """L = max(0, delta - log pi(y_w|x) + log pi(y_l|x)) - regularization log pi(y_w|x), mean over pairs.

    SLiC-HF (Zhao et al. 2023, 2305.10425): a margin of `delta` nats between summed log-probabilities, no reference. The
    paper's regulariser takes the SFT target; here the chosen reply is the target. Defaults: those of HALOs.
    value, weight: [B]; a pair counts if both sides have tokens.

    Metrics: those of `ops.preference.pair_metrics`, for rewards log pi(y|x).
    Raises ValueError if delta is not positive or regularization is negative.
    Use when there is no room for a reference model and replies have similar lengths (sums favour short ones).
    """
    require(delta > 0, f"slic: delta = {delta}: expected a positive margin in nats, such as 1.0")
    require(regularization >= 0, f"slic: regularization = {regularization}: expected 0 (off) or more, such as 0.1")
    chosen_B, rejected_B = summed_logp(pair.chosen), summed_logp(pair.rejected)
    value_B = jnp.maximum(delta - (chosen_B - rejected_B), 0.0) - regularization * chosen_B
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
