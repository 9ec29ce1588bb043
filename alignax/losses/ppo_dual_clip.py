"""PPO with a second clip for bad actions that have become likely."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs, require
from alignax.ops.policy import check_clip, clip_metrics, clipped, constant, drift_metrics, log_ratio
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


def ppo_dual_clip(
    rollout: Rollout, *, clip_low: Scalar = 0.2, clip_high: Scalar = 0.2, max_ratio: Scalar = 3.0
) -> Loss:
    """L = -mean_t O_t, where O_t is PPO's min(rho_t A_t, clip(rho_t) A_t), but at least max_ratio A_t where A_t < 0.

    Ye et al. 2020 (arXiv 1912.09729), whose constant is 3, verl's default too. PPO bounds nothing where A < 0 and rho
    is large; here such a token gets no gradient beyond max_ratio. TRL's `delta` is the same bound. The mean is over all
    action tokens of the batch; advantages and old log-probabilities are constants. value, weight: [B T].

    Metrics, token means: policy/clipfrac_lower, how often the second clip is active (verl's pg_clipfrac_lower);
    clip_ratio/low_mean, high_mean and region_mean, where the first clip stops the gradient; policy/approxkl_avg;
    policy/entropy_avg, nats; val/ratio, rho.

    Raises ValueError if a clip is not positive or max_ratio is inside the first clip, or logp, advantage or entropy is
    missing.
    Use when PPO runs far off-policy (old rollouts, many epochs) and bad tokens with huge ratios upset it.
    """
    check_clip("ppo_dual_clip", clip_low, clip_high)
    require(
        max_ratio > 1 + clip_high,
        f"ppo_dual_clip: max_ratio = {max_ratio}: expected more than 1 + clip_high = {1 + clip_high}, such as 3.0",
    )
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, rollout.mask)
    advantage_BT = constant(advantage_BT, rollout.mask)
    ratio_BT = exp_linear(log_ratio_BT)
    objective_BT = clipped(ratio_BT, advantage_BT, clip_low, clip_high)
    floor_BT = max_ratio * advantage_BT
    too_bad_BT = (advantage_BT < 0) & (objective_BT < floor_BT)
    weight_BT = rollout.mask.astype(jnp.float32)
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT)
    metrics |= clip_metrics(ratio_BT, advantage_BT, clip_low, clip_high, weight_BT)
    metrics |= {
        "policy/clipfrac_lower": (too_bad_BT.astype(jnp.float32), weight_BT),
        "val/ratio": (ratio_BT, weight_BT),
    }
    return Loss(value=-jnp.where(too_bad_BT, floor_BT, objective_BT), weight=weight_BT, metrics=metrics)
