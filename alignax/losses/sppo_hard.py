"""Self-play preference optimisation with hard labels."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight
from alignax.types import Loss, Pair


def sppo_hard(pair: Pair, *, beta: Scalar = 1e-3) -> Loss:
    """L = (r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2, mean over pairs, r = log pi(y|x) - log ref(y|x), summed.

    Wu et al. 2024 (2405.00675; TRL cites equation 4.7) with the chosen side's win rate taken as 1 and the other's as 0;
    beta is 1 / eta, and the reference is the policy that sampled the round. TRL has this sum of two squares; the
    authors' code takes half of it. value, weight: [B]. Default: the paper's.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta r.
    Raises ValueError if beta is not positive or ref_logp is missing.
    Use when replies are sampled afresh each round and preferences may be intransitive.
    """
    require(beta > 0, f"sppo_hard: beta = {beta}: expected a positive number, such as 1e-3")
    chosen_B, rejected_B = log_ratios(pair)
    target = 0.5 / beta
    value_B = jnp.square(chosen_B - target) + jnp.square(rejected_B + target)
    metrics = pair_metrics(pair, beta * chosen_B, beta * rejected_B)
    return Loss(value=value_B, weight=pair_weight(pair), metrics=metrics)
