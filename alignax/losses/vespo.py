"""Variational sequence-level soft policy optimisation."""

import math

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs, require
from alignax.ops.masked import masked_mean, masked_sum
from alignax.ops.policy import constant, drift_metrics, log_ratio
from alignax.types import Loss, Rollout

LEAST, MOST = math.log(1e-8), 20.0  # of the log-ratio of a reply, and MOST of a token's: as in the authors' code


def vespo(
    rollout: Rollout, *, k_pos: Scalar = 2.0, lambda_pos: Scalar = 3.0, k_neg: Scalar = 3.0, lambda_neg: Scalar = 2.0
) -> Loss:
    """L = -(sum_i sum_t phi(w_i) A_t log pi_t) / (sum_i |y_i|), phi(w) = w^k e^(lambda (1 - w)).

    w_i = pi(y_i) / pi_old(y_i), of the whole reply. arXiv 2602.10693, with its shapes: k_pos and lambda_pos where
    A_t >= 0, k_neg and lambda_neg elsewhere. REINFORCE with a weight by how far the whole reply has moved: phi(1) = 1,
    and it falls to 0 on both sides, as w^k below and as e^(-lambda w) above; there is no clip, and no root of |y|. phi
    is a constant. It is TRL's loss_type "vespo". Advantages and old log-probabilities are constants. value, weight:
    [B T].

    Metrics: vespo/phi_seq_mean, and val/ratio, w, over sequences; token means of policy/approxkl_avg, 0.5 (log rho)^2,
    and policy/entropy_avg, nats.

    Raises ValueError if k is negative or lambda not positive, or logp, advantage or entropy is missing.
    Use when rollouts are several updates old, and clips of single tokens throw too much of them away.
    """
    for name, k in (("k_pos", k_pos), ("k_neg", k_neg)):
        require(k >= 0, f"vespo: {name} = {k}: expected 0 (no weight below 1) or more, such as 2.0")
    for name, rate in (("lambda_pos", lambda_pos), ("lambda_neg", lambda_neg)):
        require(rate > 0, f"vespo: {name} = {rate}: expected a positive rate, such as 3.0")
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, rollout.mask)
    advantage_BT = constant(advantage_BT, rollout.mask)
    held_BT = jax.lax.stop_gradient(jnp.clip(log_ratio_BT, -MOST, MOST))
    log_w_B1 = jnp.clip(masked_sum(held_BT, rollout.mask, axis=1), LEAST, MOST)[:, None]
    k_BT = jnp.where(advantage_BT >= 0, k_pos, k_neg)
    lambda_BT = jnp.where(advantage_BT >= 0, lambda_pos, lambda_neg)
    phi_BT = jnp.exp(k_BT * log_w_B1 + lambda_BT * (1.0 - jnp.exp(log_w_B1)))
    value_BT = jnp.where(rollout.mask, -phi_BT * advantage_BT * logp_BT.astype(jnp.float32), 0.0)
    weight_B, weight_BT = jnp.any(rollout.mask, axis=1).astype(jnp.float32), rollout.mask.astype(jnp.float32)
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT) | {"val/ratio": (jnp.exp(log_w_B1[:, 0]), weight_B)}
    metrics["vespo/phi_seq_mean"] = (masked_mean(phi_BT, rollout.mask, axis=1), weight_B)
    return Loss(value=value_BT, weight=weight_BT, metrics=metrics)
