"""Length-normalised DPO."""

import jax

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight, per_token
from alignax.types import Loss, Pair


def dpo_norm(pair: Pair, *, beta: Scalar = 5.0) -> Loss:
    """L = -log sigmoid(beta (r_w / |y_w| - r_l / |y_l|)), mean over pairs, r = log pi(y|x) - log ref(y|x), summed.

    DPO with the log-ratio averaged per token (Tulu 3, 2411.15124; TRL's "sigmoid_norm"). Averages are as much smaller
    as replies are long, so beta is larger than DPO's. value, weight: [B]. Default: Tulu 3's.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta r / |y| (TRL logs beta r).
    Raises ValueError if beta is not positive or ref_logp is missing.
    Use when DPO makes replies longer and a reference is at hand (`simpo` does without).
    """
    require(beta > 0, f"dpo_norm: beta = {beta}: expected a positive number, such as 5.0")
    chosen_B, rejected_B = (beta * mean_B for mean_B in per_token(pair, *log_ratios(pair)))
    value_B = -jax.nn.log_sigmoid(chosen_B - rejected_B)
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
