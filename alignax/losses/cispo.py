"""REINFORCE with a bounded importance weight."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs, require
from alignax.ops.policy import constant, drift_metrics, log_ratio
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


def cispo(rollout: Rollout, *, max_ratio: Scalar = 5.0) -> Loss:
    """L = -mean_t sg[min(rho_t, max_ratio)] A_t log pi(y_t), sg a constant; the mean is over all action tokens.

    MiniMax-M1 2025 (arXiv 2506.13585), with max_ratio = 1 + eps_high and the lower bound off, as there. The weight is
    clipped and not the gradient: no token loses its gradient, however far it has moved. 5 is TRL's recipe
    (`epsilon_high=5.0`, which TRL compares with rho itself). The gradient is not the slope of the value, since the
    weight is held. Advantages and old log-probabilities are constants. value, weight: [B T].

    Metrics, token means: cispo_clip_ratio, how often rho > max_ratio and A > 0 (TRL's name); policy/approxkl_avg,
    0.5 (log rho)^2; policy/entropy_avg, nats; val/ratio, rho before the bound.

    Raises ValueError if max_ratio is not positive, or logp, advantage or entropy is missing.
    Use when PPO's clip silences rare but decisive tokens over several steps per rollout.
    """
    require(max_ratio > 0, f"cispo: max_ratio = {max_ratio}: expected a positive number, such as 5.0")
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, rollout.mask)
    advantage_BT = constant(advantage_BT, rollout.mask)
    ratio_BT = jax.lax.stop_gradient(exp_linear(log_ratio_BT))
    held_BT = jnp.minimum(ratio_BT, max_ratio) * advantage_BT
    value_BT = -held_BT * jnp.where(rollout.mask, logp_BT.astype(jnp.float32), 0.0)
    weight_BT = rollout.mask.astype(jnp.float32)
    bounded_BT = (ratio_BT > max_ratio) & (advantage_BT > 0)
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT)
    metrics |= {"cispo_clip_ratio": (bounded_BT.astype(jnp.float32), weight_BT), "val/ratio": (ratio_BT, weight_BT)}
    return Loss(value=value_BT, weight=weight_BT, metrics=metrics)
