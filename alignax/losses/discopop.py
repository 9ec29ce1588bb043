"""The log-ratio modulated loss that a language model discovered."""

import jax

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Pair


def discopop(pair: Pair, *, beta: Scalar = 0.05, tau: Scalar = 0.05) -> Loss:
    """L = -(1 - s) log sigmoid(z) + s exp(-z), mean over pairs, z = beta h, s = sigmoid(z / tau), h as in `dpo`.

    DiscoPOP (Lu et al. 2024, 2406.08414; TRL cites equation 5): logistic for lost pairs, exponential for won ones. Not
    convex near 0: the slope there is (1 - log 2) / (4 tau) - 3/4, +0.78 at the defaults, so a policy that starts at its
    reference is first drawn to the rejected reply, and small steps may stay in the minimum left of 0. The second term
    is taken as exp(log s - z), since s alone underflows where exp(-z) overflows. value, weight: [B]. Defaults: the
    paper's.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta (log pi - log ref).
    Raises ValueError if beta or tau is not positive, or ref_logp is missing.
    Use when you want to compare with a discovered objective, or start a search for others; watch rewards/accuracies.
    """
    require(beta > 0, f"discopop: beta = {beta}: expected a positive number, such as 0.05")
    require(tau > 0, f"discopop: tau = {tau}: expected a positive number, such as 0.05")
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    z_B = chosen_B - rejected_B
    logistic_B = -jax.nn.sigmoid(-z_B / tau) * jax.nn.log_sigmoid(z_B)
    exponential_B = exp_linear(jax.nn.log_sigmoid(z_B / tau) - z_B)
    metrics = pair_metrics(pair, chosen_B, rejected_B)
    return Loss(value=logistic_B + exponential_B, weight=pair_weight(pair), metrics=metrics)
