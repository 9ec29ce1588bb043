"""DPO that keeps chosen replies as likely as the reference has them."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight
from alignax.types import Loss, Pair


def dpo_positive(pair: Pair, *, beta: Scalar = 0.3, penalty: Scalar = 50.0) -> Loss:
    """L = -log sigmoid(beta (r_w - r_l - penalty max(0, -r_w))), mean over pairs.

    DPOP (Pal et al. 2024, 2402.13228; `penalty` is their lambda), r = log pi(y|x) - log ref(y|x), summed: a chosen
    reply that falls below the reference costs margin. With penalty 0 it is DPO. value, weight: [B]. Defaults: Smaug's.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta r, without the penalty.
    Raises ValueError if beta is not positive, penalty is negative, or ref_logp is missing.
    Use when the two replies differ in a few tokens only, where DPO lowers both.
    """
    require(beta > 0, f"dpo_positive: beta = {beta}: expected a positive number, such as 0.3")
    require(penalty >= 0, f"dpo_positive: penalty = {penalty}: expected 0 (plain DPO) or more, such as 50")
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    value_B = -jax.nn.log_sigmoid(chosen_B - rejected_B - penalty * jnp.maximum(-chosen_B, 0.0))
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
