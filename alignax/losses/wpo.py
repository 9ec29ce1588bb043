"""DPO weighted by how likely the current policy is to write the pair."""

import jax

from alignax.ops.checks import Scalar, declares, needs, require
from alignax.ops.masked import masked_mean
from alignax.ops.preference import log_ratios, mean_logp, pair_metrics, pair_weight
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Pair


@declares(offline_only=True)
def wpo(pair: Pair, *, beta: Scalar = 0.1, alignment: str = "sampled") -> Loss:
    """L = -w(y_w) w(y_l) log sigmoid(beta h), mean over pairs, h as in `dpo`,

        w(y) = exp((1 / |y|) sum_t [log pi(y_t) - log sum_v pi(v)^2]), a constant (no gradient).

    Zhou et al. 2024 (2406.11827; TRL cites equation 2): off-policy pairs count as far as the policy would write them.
    The second term, `collision`, makes replies sampled from the policy weigh about 1 ("sampled" alignment); "none"
    leaves it out. The weight stands in the value, not in the denominator, and grows linearly beyond e^20. As in TRL; an
    older TRL also cut it at 1. value, weight: [B]. Default beta: TRL's.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta (log pi - log ref); wpo/weight, w(y_w) w(y_l).
    Raises ValueError if beta is not positive, alignment is unknown, or ref_logp or (if "sampled") collision is missing.
    Use when pairs were written by other models and should act as if they were the policy's own.
    """
    require(beta > 0, f"wpo: beta = {beta}: expected a positive number, such as 0.1")
    require(alignment in ("sampled", "none"), f"wpo: alignment = {alignment!r}: expected 'sampled' or 'none'")
    log_weight_B = mean_logp(pair.chosen) + mean_logp(pair.rejected)
    if alignment == "sampled":
        for side in (pair.chosen, pair.rejected):
            log_weight_B -= masked_mean(needs(side, "collision")[0], side.mask, axis=1)
    scale_B = jax.lax.stop_gradient(exp_linear(log_weight_B))
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    value_B = -scale_B * jax.nn.log_sigmoid(chosen_B - rejected_B)
    weight_B = pair_weight(pair)
    metrics = pair_metrics(pair, chosen_B, rejected_B) | {"wpo/weight": (scale_B, weight_B)}
    return Loss(value=value_B, weight=weight_B, metrics=metrics)
