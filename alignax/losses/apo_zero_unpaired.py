"""Anchored preference optimisation on thumbs up and down."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratio, row_counts, unpaired_metrics
from alignax.types import Loss, Unpaired


def apo_zero_unpaired(unpaired: Unpaired, *, beta: Scalar = 0.1) -> Loss:
    """L = 1 - sigmoid(beta r) for a desirable reply, sigmoid(beta r) for another, mean over rows.

    r = log pi(y|x) - log ref(y|x), summed: APO-zero (D'Oosterlinck et al. 2024, 2408.06266) side by side, as TRL's KTO
    trainer has it; also KTO with its reference point at 0. value, weight: [B]. Default: the paper's.

    Metrics: those of `ops.preference.unpaired_metrics`, for rewards beta r.
    Raises ValueError if beta is not positive or ref_logp is missing.
    Use when feedback is a thumb per reply and rows should not know of each other (microbatches, mixed batches).
    """
    require(beta > 0, f"apo_zero_unpaired: beta = {beta}: expected a positive number, such as 0.1")
    reward_B = beta * log_ratio(unpaired.side)
    value_B = jax.nn.sigmoid(jnp.where(unpaired.desirable, -reward_B, reward_B))
    weight_B = row_counts(unpaired.side).astype(jnp.float32)
    return Loss(value=value_B, weight=weight_B, metrics=unpaired_metrics(unpaired, reward_B))
