"""The hinge loss on preference margins."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight
from alignax.types import Loss, Pair


def hinge(pair: Pair, *, beta: Scalar = 0.1) -> Loss:
    """L = max(0, 1 - beta h), mean over pairs, h = r_w - r_l and r = log pi(y|x) - log ref(y|x), summed.

    The hinge of SLiC on log-ratios, as RSO puts it (Liu et al. 2023, 2309.06657), and TRL's loss type "hinge". Pairs
    whose margin exceeds 1 / beta nats are left alone: no gradient. value, weight: [B]; default: TRL's.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta r.
    Raises ValueError if beta is not positive or ref_logp is missing.
    Use when pairs that are already won by a margin should stop pushing.
    """
    require(beta > 0, f"hinge: beta = {beta}: expected a positive number, such as 0.1")
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    value_B = jnp.maximum(1.0 - (chosen_B - rejected_B), 0.0)
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
