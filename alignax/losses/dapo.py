"""Decoupled clip and token mean."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs
from alignax.ops.policy import check_clip, clip_metrics, clipped, constant, drift_metrics, log_ratio
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


def dapo(rollout: Rollout, *, clip_low: Scalar = 0.2, clip_high: Scalar = 0.28) -> Loss:
    """L = -(sum_i sum_t O_t) / (sum_i |y_i|), O_t = min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t).

    Yu et al. 2025 (arXiv 2503.14476), with its clips. The *token mean* over the whole batch lets every token weigh the
    same; the wider upper clip leaves rare tokens room to rise. DAPO's other parts are `ops.advantages`:
    group_standardise, informative (groups whose rewards are all equal do not count: mask their rows) and
    overlong_penalty. It has no KL term. Advantages and old log-probabilities are constants. value, weight: [B T].

    Metrics, token means: clip_ratio/low_mean, high_mean and region_mean, where the clip stops the gradient;
    policy/approxkl_avg, 0.5 (log rho)^2; policy/entropy_avg, nats; val/ratio, rho.

    Raises ValueError if a clip is not positive, or logp, advantage or entropy is missing.
    Use when rewards are verifiable and replies long: the default of TRL's GRPO trainer.
    """
    check_clip("dapo", clip_low, clip_high)
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, rollout.mask)
    advantage_BT = constant(advantage_BT, rollout.mask)
    ratio_BT = exp_linear(log_ratio_BT)
    weight_BT = rollout.mask.astype(jnp.float32)
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT) | {"val/ratio": (ratio_BT, weight_BT)}
    metrics |= clip_metrics(ratio_BT, advantage_BT, clip_low, clip_high, weight_BT)
    return Loss(value=-clipped(ratio_BT, advantage_BT, clip_low, clip_high), weight=weight_BT, metrics=metrics)
