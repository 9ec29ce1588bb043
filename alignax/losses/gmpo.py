"""Geometric-mean policy optimisation."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs
from alignax.ops.masked import masked_mean
from alignax.ops.policy import check_clip, constant, drift_metrics, log_ratio
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


def gmpo(rollout: Rollout, *, clip_low: Scalar = 0.4, clip_high: Scalar = 0.4) -> Loss:
    """L = -mean_i A_i (prod_t c_t)^(1 / |y_i|), log c_t = min(log rho_t, clip_high) or max(log rho_t, -clip_low).

    The first for A_i > 0, the second otherwise. Zhao et al. 2025 (arXiv 2507.20673), with its clips, which are of the
    log-ratio: ratios within e^-0.4 and e^0.4. The geometric mean of a reply's token ratios in place of GRPO's
    arithmetic one, each token clipped before, on the side where the objective would go on to gain. One ratio that is
    far off moves the mean little. A_i is the mean of the row's token advantages, the paper's if all are equal. It is
    TRL's `GMPOTrainer`, where the mean counts rows without action tokens too. Advantages and old log-probabilities are
    constants. value, weight: [B], rows with an action token.

    Metrics: token means of clip_ratio/low_mean, high_mean and region_mean, where the clip stops the gradient, and of
    policy/approxkl_avg, 0.5 (log rho)^2, and policy/entropy_avg, nats; val/ratio, the geometric mean, over sequences.

    Raises ValueError if a clip is not positive, or logp, advantage or entropy is missing.
    Use when outliers among token ratios make GRPO's updates jump.
    """
    check_clip("gmpo", clip_low, clip_high)
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, rollout.mask)
    advantage_B1 = masked_mean(constant(advantage_BT, rollout.mask), rollout.mask, axis=1)[:, None]
    kept_BT = jnp.where(
        advantage_B1 > 0, jnp.minimum(log_ratio_BT, clip_high), jnp.maximum(log_ratio_BT, -jnp.asarray(clip_low))
    )
    ratio_B = exp_linear(masked_mean(kept_BT, rollout.mask, axis=1))
    weight_B, weight_BT = jnp.any(rollout.mask, axis=1).astype(jnp.float32), rollout.mask.astype(jnp.float32)
    low_BT, high_BT = (log_ratio_BT < -clip_low) & (advantage_B1 < 0), (log_ratio_BT > clip_high) & (advantage_B1 > 0)
    clips = {"low": low_BT, "high": high_BT, "region": low_BT | high_BT}
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT) | {"val/ratio": (ratio_B, weight_B)}
    metrics |= {f"clip_ratio/{name}_mean": (x_BT.astype(jnp.float32), weight_BT) for name, x_BT in clips.items()}
    return Loss(value=-ratio_B * advantage_B1[:, 0], weight=weight_B, metrics=metrics)
