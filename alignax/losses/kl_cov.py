"""A policy gradient that holds back the few tokens which drive entropy down most."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, declares, needs, require
from alignax.ops.policy import constant, covariance, drift_metrics, log_ratio
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


@declares(whole_batch=True)
def kl_cov(rollout: Rollout, *, fraction: Scalar = 2e-4, coef: Scalar = 1.0) -> Loss:
    """L = -mean_t [rho_t A_t - 1[t in I] coef |log rho_t|], KL-Cov of Cui et al. 2025 (arXiv 2505.22617).

    I holds the ceil(fraction N) tokens of largest covariance (log pi_t - mean log pi)(A_t - mean A), N the action
    tokens of the batch (the authors round down, to one at least). |log rho| is the authors' estimate of
    KL(pi_old || pi); the paper leaves the estimator open. There is no clip. Its gradient at rho = 1 is taken as 0:
    the first step on a rollout is the plain policy gradient, if the old log-probabilities are equal to the last bit (a
    rounding error is enough for the full push, of either sign). Defaults are the authors' code's; fraction 2e-3 suited
    smaller models. The selection, advantages and old log-probabilities are constants. value, weight: [B T].

    Metrics, token means: policy/cov_avg, the covariance; policy/cov_fraction, the tokens in I (ties with the last one
    join it); policy/approxkl_avg, 0.5 (log rho)^2; policy/entropy_avg, nats; val/ratio, rho.

    Raises ValueError if fraction is not in (0, 1] or coef is negative, or logp, advantage or entropy is missing.
    Use when entropy collapses under verifiable rewards over several steps per rollout; needs the batch in one piece.
    """
    require((fraction > 0) & (fraction <= 1), f"kl_cov: fraction = {fraction}: expected a share of tokens in (0, 1]")
    require(coef >= 0, f"kl_cov: coef = {coef}: expected 0 (off) or more, such as 1.0")
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, rollout.mask)
    advantage_BT = constant(advantage_BT, rollout.mask)
    ratio_BT = exp_linear(log_ratio_BT)
    weight_BT = rollout.mask.astype(jnp.float32)
    cov_BT = covariance(logp_BT, advantage_BT, rollout.mask)
    descending = jnp.sort(jnp.where(rollout.mask, cov_BT, -jnp.inf).ravel(), descending=True)
    count = jnp.ceil(fraction * jnp.sum(weight_BT)).astype(jnp.int32)
    picked_BT = rollout.mask & (cov_BT >= descending[jnp.maximum(count, 1) - 1])
    away_BT = picked_BT & (log_ratio_BT != 0)  # JAX takes 1 as the slope of |x| at 0
    held_BT = jnp.where(away_BT, coef * jnp.abs(log_ratio_BT), 0.0)
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT) | {"val/ratio": (ratio_BT, weight_BT)}
    metrics |= {
        "policy/cov_avg": (cov_BT, weight_BT),
        "policy/cov_fraction": (picked_BT.astype(jnp.float32), weight_BT),
    }
    return Loss(value=held_BT - ratio_BT * advantage_BT, weight=weight_BT, metrics=metrics)
