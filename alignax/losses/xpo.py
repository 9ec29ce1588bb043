"""Exploratory preference optimisation."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, declares, needs, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight, summed_logp
from alignax.types import Loss, Pair


@declares(online_only=True, online_needs_opponent="reference")
def xpo(pair: Pair, *, beta: Scalar = 0.1, alpha: Scalar = 1e-5) -> Loss:
    """L = -log sigmoid(beta h) + alpha log pi(y_ref|x), mean over pairs, h as in `dpo`.

    Xie et al. 2024 (2405.21046): of each pair one reply was sampled by the policy and one, y_ref, by the reference;
    `reference_is_chosen` says which. Making the reference's own samples less likely is the bonus for exploring.
    value, weight: [B]. The paper gives no alpha; the defaults are TRL's.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta (log pi - log ref); loss/xpo, the second term.
    Raises ValueError if beta is not positive, alpha is negative, or ref_logp or reference_is_chosen is missing.
    Use when pairs are sampled online and the policy should look where the reference does not.
    """
    require(beta > 0, f"xpo: beta = {beta}: expected a positive number, such as 0.1")
    require(alpha >= 0, f"xpo: alpha = {alpha}: expected 0 (plain DPO) or more, such as 1e-5")
    (reference_is_chosen_B,) = needs(pair, "reference_is_chosen")
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    bonus_B = alpha * jnp.where(reference_is_chosen_B, summed_logp(pair.chosen), summed_logp(pair.rejected))
    weight_B = pair_weight(pair)
    metrics = pair_metrics(pair, chosen_B, rejected_B) | {"loss/xpo": (bonus_B, weight_B)}
    return Loss(value=bonus_B - jax.nn.log_sigmoid(chosen_B - rejected_B), weight=weight_B, metrics=metrics)
