"""Soft adaptive policy optimisation."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs, require
from alignax.ops.masked import masked_mean
from alignax.ops.policy import constant, drift_metrics, log_ratio
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


def sapo(rollout: Rollout, *, tau_pos: Scalar = 1.0, tau_neg: Scalar = 1.05) -> Loss:
    """L = -mean_i (1 / |y_i|) sum_t f(rho_t) A_t, f(rho) = (4 / tau) sigmoid(tau (rho - 1)), tau by the sign of A_t.

    arXiv 2511.20347, with its temperatures (TRL's `sapo_temperature_pos` and `_neg`): a soft gate in place of the clip.
    f'(1) = 1, so on-policy the gradient is GRPO's; away from 1 it fades on both sides, the faster the larger tau is:
    tokens to be made less likely (tau_neg) fade faster. The *sequence mean* is the paper's and TRL's, which
    counts rows without action tokens too. Advantages and old log-probabilities are constants. value, weight: [B], rows
    with an action token.

    Metrics, token means: policy/approxkl_avg, 0.5 (log rho)^2; policy/entropy_avg, nats; val/ratio, rho.

    Raises ValueError if a temperature is not positive, or logp, advantage or entropy is missing.
    Use when a hard clip makes training brittle: the gradient fades instead of stopping.
    """
    require(tau_pos > 0, f"sapo: tau_pos = {tau_pos}: expected a positive temperature, such as 1.0")
    require(tau_neg > 0, f"sapo: tau_neg = {tau_neg}: expected a positive temperature, such as 1.05")
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, rollout.mask)
    advantage_BT = constant(advantage_BT, rollout.mask)
    ratio_BT = exp_linear(log_ratio_BT)
    tau_BT = jnp.where(advantage_BT > 0, tau_pos, tau_neg)
    gate_BT = 4 / tau_BT * jax.nn.sigmoid(tau_BT * (ratio_BT - 1))
    value_B = -masked_mean(gate_BT * advantage_BT, rollout.mask, axis=1)
    weight_B, weight_BT = jnp.any(rollout.mask, axis=1).astype(jnp.float32), rollout.mask.astype(jnp.float32)
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT) | {"val/ratio": (ratio_BT, weight_BT)}
    return Loss(value=value_B, weight=weight_B, metrics=metrics)
