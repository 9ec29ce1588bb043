"""SimPO with a reward of another shape."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import mean_logp, pair_metrics, pair_weight, power_reward
from alignax.types import Loss, Pair


def alphapo(pair: Pair, *, beta: Scalar = 2.0, gamma: Scalar = 0.5, alpha: Scalar = 0.25) -> Loss:
    """L = -log sigmoid(beta (R(y_w) - R(y_l)) - gamma), mean over pairs, R = (1 - p^-alpha) / alpha,

    p = pi(y|x)^(1 / |y|), the geometric mean of the token probabilities (AlphaPO, 2501.03884). At alpha = 0 R is
    its limit log p, which is SimPO; alpha may be negative. Where p^-alpha is beyond e^20 it goes on linearly in log p.
    value, weight: [B]. Defaults: SimPO's beta and gamma; alpha is a starting point to tune from.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta R; logps/* are sums.
    Raises ValueError if beta is not positive, gamma is negative or alpha is not finite.
    Use when SimPO displaces likelihoods too much or too little: alpha bends the reward.
    """
    require(beta > 0, f"alphapo: beta = {beta}: expected a positive number, such as 2.0")
    require(gamma >= 0, f"alphapo: gamma = {gamma}: expected a margin of 0 or more, such as 0.25 beta")
    require((alpha > -jnp.inf) & (alpha < jnp.inf), f"alphapo: alpha = {alpha}: expected a finite number; 0 is SimPO")
    chosen_B, rejected_B = (beta * power_reward(mean_logp(side), alpha) for side in (pair.chosen, pair.rejected))
    value_B = -jax.nn.log_sigmoid(chosen_B - rejected_B - gamma)
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
