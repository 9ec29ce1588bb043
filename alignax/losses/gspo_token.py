"""GSPO with an advantage per token."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs
from alignax.ops.masked import masked_mean
from alignax.ops.policy import check_clip, clip_metrics, clipped, constant, drift_metrics, log_ratio
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


def gspo_token(rollout: Rollout, *, clip_low: Scalar = 3e-4, clip_high: Scalar = 4e-4) -> Loss:
    """L = -mean_i (1 / |y_i|) sum_t min(s_t A_t, clip(s_t, 1 - clip_low, 1 + clip_high) A_t), with

        s_t = sg[s_i] pi(y_t) / sg[pi(y_t)],        s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|),

    sg a constant: every token has GSPO's sequence ratio as its value, and pushes its own log-probability by s_i A_t /
    |y_i| (Zheng et al. 2025, arXiv 2507.18071). With one advantage per reply value and gradient are gspo's; otherwise
    the gradient is not the slope of the value, by definition. TRL 1.5 has it (dropped since), as "sequence_token"; its
    "sequence" with an advantage per token has this value, and the gradient of s_i instead. Advantages and old
    log-probabilities are constants. value, weight: [B], rows with an action token.

    Metrics, token means: clip_ratio/low_mean, high_mean and region_mean, where the clip stops the gradient;
    policy/approxkl_avg, 0.5 (log rho)^2; policy/entropy_avg, nats; val/ratio, s_i.

    Raises ValueError if a clip is not positive, or logp, advantage or entropy is missing.
    Use when gspo is wanted and advantages differ within a reply: several turns, step rewards.
    """
    check_clip("gspo_token", clip_low, clip_high)
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, rollout.mask)
    advantage_BT = constant(advantage_BT, rollout.mask)
    ratio_B = jax.lax.stop_gradient(exp_linear(masked_mean(log_ratio_BT, rollout.mask, axis=1)))
    ratio_BT = ratio_B[:, None] * jnp.exp(log_ratio_BT - jax.lax.stop_gradient(log_ratio_BT))
    value_B = -masked_mean(clipped(ratio_BT, advantage_BT, clip_low, clip_high), rollout.mask, axis=1)
    weight_B, weight_BT = jnp.any(rollout.mask, axis=1).astype(jnp.float32), rollout.mask.astype(jnp.float32)
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT) | {"val/ratio": (ratio_BT, weight_BT)}
    metrics |= clip_metrics(ratio_BT, advantage_BT, clip_low, clip_high, weight_BT)
    return Loss(value=value_B, weight=weight_B, metrics=metrics)
