"""Anchored preference optimisation for a policy that is better than the chosen replies."""

import jax

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight
from alignax.types import Loss, Pair


def apo_down(pair: Pair, *, beta: Scalar = 0.1) -> Loss:
    """L = sigmoid(beta r_w) + 1 - sigmoid(beta (r_w - r_l)), mean over pairs, r = log pi(y|x) - log ref(y|x), summed.

    D'Oosterlinck et al. 2024 (2408.06266; TRL cites equation 8): both replies go down, the rejected one further.
    Between 0 and 2, with a bounded gradient. value, weight: [B]. Default: the paper's.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta r.
    Raises ValueError if beta is not positive or ref_logp is missing.
    Use when the policy already writes better than the chosen replies, and only their contrast teaches.
    """
    require(beta > 0, f"apo_down: beta = {beta}: expected a positive number, such as 0.1")
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    value_B = jax.nn.sigmoid(chosen_B) + jax.nn.sigmoid(rejected_B - chosen_B)
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
