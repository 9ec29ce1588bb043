"""GRPO without its length bias."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs, require
from alignax.ops.masked import masked_sum
from alignax.ops.policy import check_clip, clip_metrics, clipped, constant, drift_metrics, log_ratio
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


def dr_grpo(rollout: Rollout, *, max_tokens: Scalar = 512.0, clip_low: Scalar = 0.2, clip_high: Scalar = 0.2) -> Loss:
    """L = -mean_i (1 / max_tokens) sum_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t).

    Liu et al. 2025 (arXiv 2503.20783): GRPO's 1 / |y_i| becomes a *fixed divisor*, and its advantage is not divided by
    the standard deviation: take `ops.advantages.group_mean`. max_tokens is the longest completion that the sampler may
    write, in tokens (512 is TRL's `max_completion_length`): set it to yours; it scales the loss like a learning rate.
    The mean is over rows with an action token, so a masked row counts as absent (TRL counts it). TRL divides its KL by
    max_tokens too: its beta is `losses.kl` at beta times the mean length over max_tokens. value, weight: [B].
    Advantages and old log-probabilities are constants.

    Metrics, token means: clip_ratio/low_mean, high_mean and region_mean, where the clip stops the gradient;
    policy/approxkl_avg, 0.5 (log rho)^2; policy/entropy_avg, nats; val/ratio, rho.

    Raises ValueError if max_tokens or a clip is not positive, or logp, advantage or entropy is missing.
    Use when replies to one prompt differ in length: on-policy its gradient is unbiased, up to a constant factor.
    """
    require(max_tokens > 0, f"dr_grpo: max_tokens = {max_tokens}: expected the longest completion, in tokens")
    check_clip("dr_grpo", clip_low, clip_high)
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, rollout.mask)
    advantage_BT = constant(advantage_BT, rollout.mask)
    ratio_BT = exp_linear(log_ratio_BT)
    objective_BT = clipped(ratio_BT, advantage_BT, clip_low, clip_high)
    value_B = -masked_sum(objective_BT, rollout.mask, axis=1) / max_tokens
    weight_B, weight_BT = jnp.any(rollout.mask, axis=1).astype(jnp.float32), rollout.mask.astype(jnp.float32)
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT) | {"val/ratio": (ratio_BT, weight_BT)}
    metrics |= clip_metrics(ratio_BT, advantage_BT, clip_low, clip_high, weight_BT)
    return Loss(value=value_B, weight=weight_B, metrics=metrics)
