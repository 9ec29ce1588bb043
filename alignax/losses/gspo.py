"""Group sequence policy optimisation."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs
from alignax.ops.masked import masked_mean
from alignax.ops.policy import check_clip, clip_metrics, clipped, constant, drift_metrics, log_ratio
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


def gspo(rollout: Rollout, *, clip_low: Scalar = 3e-4, clip_high: Scalar = 4e-4) -> Loss:
    """L = -mean_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i), s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|).

    Zheng et al. 2025 (arXiv 2507.18071), with its clips: s_i is the geometric mean of the token ratios, so it stays far
    closer to 1 than they do. A whole reply is clipped or none of it. A_i is the mean of the row's token advantages, the
    paper's if all are equal (if not, see gspo_token). |y_i| counts action tokens. It is TRL's loss_type "grpo" with
    `importance_sampling_level` "sequence" (the default type would weigh a reply by |y_i|), where the mean counts rows
    without action tokens too. Advantages and old log-probabilities are constants. value, weight: [B], rows with an
    action token.

    Metrics: means over sequences of clip_ratio/low_mean, high_mean and region_mean, where the clip stops the gradient,
    and of val/ratio, s; token means of policy/approxkl_avg, 0.5 (log rho)^2, and policy/entropy_avg, nats.

    Raises ValueError if a clip is not positive, or logp, advantage or entropy is missing.
    Use when single-token ratios are noisy (mixture-of-experts models) and each rollout gets several gradient steps.
    """
    check_clip("gspo", clip_low, clip_high)
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, rollout.mask)
    ratio_B = exp_linear(masked_mean(log_ratio_BT, rollout.mask, axis=1))
    advantage_B = masked_mean(constant(advantage_BT, rollout.mask), rollout.mask, axis=1)
    weight_B, weight_BT = jnp.any(rollout.mask, axis=1).astype(jnp.float32), rollout.mask.astype(jnp.float32)
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT) | {"val/ratio": (ratio_B, weight_B)}
    metrics |= clip_metrics(ratio_B, advantage_B, clip_low, clip_high, weight_B)
    return Loss(value=-clipped(ratio_B, advantage_B, clip_low, clip_high), weight=weight_B, metrics=metrics)
