"""Simple preference optimisation: length-normalised, without a reference."""

import jax

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import mean_logp, pair_metrics, pair_weight
from alignax.types import Loss, Pair


def simpo(pair: Pair, *, beta: Scalar = 2.0, gamma: Scalar = 0.5) -> Loss:
    """L = -log sigmoid((beta / |y_w|) log pi(y_w|x) - (beta / |y_l|) log pi(y_l|x) - gamma), mean over pairs.

    Meng et al. 2024 (2405.14734): the reward is the mean log-probability per token, the one that decoding ranks by, and
    a pair shall be won by a margin of gamma (TRL's `simpo_gamma`; the authors' code asks for gamma / beta).
    value, weight: [B]. Defaults: in the authors' range (beta 2 to 2.5, ratio 0.1 to 0.8).

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta log pi / |y|; logps/* are sums (TRL logs means).
    Raises ValueError if beta is not positive or gamma is negative.
    Use when there is no room for a reference model and length must not be rewarded; keep the learning rate low.
    """
    require(beta > 0, f"simpo: beta = {beta}: expected a positive number, such as 2.0")
    require(gamma >= 0, f"simpo: gamma = {gamma}: expected a margin of 0 or more, such as 0.25 beta")
    chosen_B, rejected_B = beta * mean_logp(pair.chosen), beta * mean_logp(pair.rejected)
    value_B = -jax.nn.log_sigmoid(chosen_B - rejected_B - gamma)
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
