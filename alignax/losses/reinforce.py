"""The policy gradient without ratios."""

import jax.numpy as jnp

from alignax.ops.checks import needs, require
from alignax.ops.masked import masked_sum
from alignax.ops.policy import constant, drift_metrics, log_ratio
from alignax.types import Loss, Rollout


def reinforce(rollout: Rollout, *, aggregation: str = "token_mean") -> Loss:
    """L = -mean_t A_t log pi(y_t) ('token_mean'), or -mean_i sum_t A_t log pi(y_t) ('sequence_sum'). Williams 1992.

    'sequence_sum' treats the reply as one action, as RLOO does (Ahmadian et al. 2024, arXiv 2402.14740): with an
    unbiased advantage its gradient is unbiased, whatever the batch. 'token_mean', the default of TRL's GRPO trainer, of
    verl and OpenRLHF, divides by the number of action tokens of the batch, which is itself random: biased in small
    batches, and in large ones the same gradient over the mean length. TRL's RLOO trainer puts PPO's clip on the ratio
    of whole replies: the gradient of 'sequence_sum' at the sampling policy, away from it another. Advantages are
    constants.
    value, weight: [B T] ('token_mean') or [B], rows with an action token ('sequence_sum').

    Metrics, token means: policy/approxkl_avg, 0.5 (log rho)^2, how far pi has left the sampling policy, for which this
    loss does not correct; policy/entropy_avg, nats.

    Raises ValueError for an unknown aggregation, or if logp, advantage or entropy is missing.
    Use when each rollout gets one gradient step: plain, unbiased, nothing to tune.
    """
    options = ("token_mean", "sequence_sum")
    require(aggregation in options, f"reinforce: aggregation = {aggregation!r}: expected one of {', '.join(options)}")
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    mask_BT = rollout.mask
    weight_BT = mask_BT.astype(jnp.float32)
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, mask_BT)
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT)
    value_BT = -constant(advantage_BT, mask_BT) * jnp.where(mask_BT, logp_BT.astype(jnp.float32), 0.0)
    if aggregation == "token_mean":
        return Loss(value=value_BT, weight=weight_BT, metrics=metrics)
    weight_B = jnp.any(mask_BT, axis=1).astype(jnp.float32)
    return Loss(value=masked_sum(value_BT, mask_BT, axis=1), weight=weight_B, metrics=metrics)
