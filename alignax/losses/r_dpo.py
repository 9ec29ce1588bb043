"""DPO with a price on length."""

import jax

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import lengths, log_ratios, pair_metrics, pair_weight
from alignax.types import Loss, Pair


def r_dpo(pair: Pair, *, beta: Scalar = 0.1, alpha: Scalar = 0.01) -> Loss:
    """L = -log sigmoid(beta h + alpha (|y_w| - |y_l|)), mean over pairs, h as in `dpo`, lengths in tokens.

    R-DPO (Park et al. 2024, 2403.19159): the reward that is fitted is the annotator's plus alpha per token, so that the
    implicit one owes nothing to length; a long winner is pushed less. With alpha 0 it is DPO. value, weight: [B].
    Defaults: theirs for HH (0.05 for TL;DR).

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta (log pi - log ref), without the length term.
    Raises ValueError if beta is not positive, alpha is negative, or ref_logp is missing.
    Use when annotators favoured long replies and the policy should not.
    """
    require(beta > 0, f"r_dpo: beta = {beta}: expected a positive number, such as 0.1")
    require(alpha >= 0, f"r_dpo: alpha = {alpha}: expected 0 (plain DPO) or more per token, such as 0.01")
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    longer_B = lengths(pair.chosen) - lengths(pair.rejected)
    value_B = -jax.nn.log_sigmoid(chosen_B - rejected_B + alpha * longer_B)
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
