"""DPO that is unbiased under flipped labels."""

import jax

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight
from alignax.types import Loss, Pair


def robust_dpo(pair: Pair, *, beta: Scalar = 0.1, label_smoothing: Scalar = 0.1) -> Loss:
    """L = [-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2 e), mean over pairs, e = label_smoothing.

    rDPO (Chowdhury et al. 2024, 2403.00409): if labels are flipped with probability e, its expectation is the DPO loss
    of the clean labels; h as in `dpo`. Unlike `dpo` with smoothing it is unbounded below and multiplies the variance
    by (1 - 2 e)^-2: stop early. value, weight: [B]. Defaults: TRL's beta, the paper's e. TRL calls it "robust".

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta (log pi - log ref).
    Raises ValueError if beta is not positive, label_smoothing not in [0, 0.5), or ref_logp is missing.
    Use when the rate of flipped labels is known and the clean loss is what you want to estimate.
    """
    require(beta > 0, f"robust_dpo: beta = {beta}: expected a positive number, such as 0.1")
    require(
        (label_smoothing >= 0) & (label_smoothing < 0.5),
        f"robust_dpo: label_smoothing = {label_smoothing}: expected a flip rate in [0, 0.5), such as 0.1",
    )
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    margin_B = chosen_B - rejected_B
    kept_B, flipped_B = -jax.nn.log_sigmoid(margin_B), -jax.nn.log_sigmoid(-margin_B)
    value_B = ((1 - label_smoothing) * kept_B - label_smoothing * flipped_B) / (1 - 2 * label_smoothing)
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
