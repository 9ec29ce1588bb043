"""PPO that silences a few of the tokens which drive entropy down."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, declares, needs, require
from alignax.ops.masked import ratio as safe_ratio
from alignax.ops.policy import check_clip, clip_metrics, clipped, constant, covariance, drift_metrics, log_ratio
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


@declares(whole_batch=True)
def clip_cov(
    rollout: Rollout,
    *,
    fraction: Scalar = 2e-4,
    cov_low: Scalar = 1.0,
    cov_high: Scalar = 5.0,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.2,
) -> Loss:
    """L = -mean_t keep_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t), Clip-Cov of Cui et al. 2025.

    Of the n tokens whose covariance c_t = (log pi_t - mean log pi)(A_t - mean A) lies in (cov_low, cov_high), the paper
    (arXiv 2505.22617) drops floor(fraction N) drawn at random, N the action tokens of the batch. A loss draws nothing:
    keep_t = 1 - min(fraction N / n, 1) for all n of them is the expectation of that draw, in value and in gradient,
    without the floor. The authors' code drops one token at least, and no token that PPO's clip has stopped already;
    the second holds here too. Defaults are theirs. c, advantages and old log-probabilities are constants; the mean is
    over all action tokens. value, weight: [B T]. Take advantages of unit scale: cov_low and cov_high are in their unit.

    Metrics, token means: policy/cov_avg, c; policy/cov_fraction, tokens within the bounds; clip_ratio/low_mean,
    high_mean and region_mean, where PPO's clip stops the gradient; policy/approxkl_avg; policy/entropy_avg; val/ratio.

    Raises ValueError if fraction is not in [0, 1], cov_high <= cov_low, a clip is not positive, or logp, advantage or
    entropy is missing.
    Use when entropy collapses under verifiable rewards and an entropy bonus is too blunt; needs the batch in one piece.
    """
    require((fraction >= 0) & (fraction <= 1), f"clip_cov: fraction = {fraction}: expected a share of tokens in [0, 1]")
    require(cov_high > cov_low, f"clip_cov: cov_high = {cov_high}: expected more than cov_low = {cov_low}")
    check_clip("clip_cov", clip_low, clip_high)
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, rollout.mask)
    advantage_BT = constant(advantage_BT, rollout.mask)
    ratio_BT = exp_linear(log_ratio_BT)
    weight_BT = rollout.mask.astype(jnp.float32)
    clips = clip_metrics(ratio_BT, advantage_BT, clip_low, clip_high, weight_BT)
    stopped_BT = clips["clip_ratio/region_mean"][0] > 0
    cov_BT = covariance(logp_BT, advantage_BT, rollout.mask)
    inside_BT = rollout.mask & ~stopped_BT & (cov_BT > cov_low) & (cov_BT < cov_high)
    dropped = jnp.minimum(safe_ratio(fraction * jnp.sum(weight_BT), jnp.sum(inside_BT, dtype=jnp.float32)), 1.0)
    keep_BT = jnp.where(inside_BT, 1 - dropped, 1.0)
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT) | {"val/ratio": (ratio_BT, weight_BT)} | clips
    metrics |= {
        "policy/cov_avg": (cov_BT, weight_BT),
        "policy/cov_fraction": (inside_BT.astype(jnp.float32), weight_BT),
    }
    value_BT = -keep_BT * clipped(ratio_BT, advantage_BT, clip_low, clip_high)
    return Loss(value=value_BT, weight=weight_BT, metrics=metrics)
