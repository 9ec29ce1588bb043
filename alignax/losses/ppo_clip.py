"""The clipped policy loss of proximal policy optimisation."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs, require
from alignax.ops.policy import constant, drift_metrics, log_ratio
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


def ppo_clip(rollout: Rollout, *, clip: Scalar = 0.2, clip_higher: Scalar = 0.0) -> Loss:
    """L = -mean_t min(rho_t A_t, clip(rho_t, 1 - clip, 1 + clip + clip_higher) A_t), rho_t = pi(y_t) / pi_old(y_t).

    Schulman et al. 2017, equation 7, where clip_higher = 0; DAPO's clip-higher is 0.08. It is the room *beyond* clip,
    so that a sweep of clip alone stays symmetric. The mean is over all action tokens of the batch. Advantages and old
    log-probabilities are constants. rho grows linearly beyond e^20. value, weight: [B T].

    Metrics, all token means under the mask: policy/approxkl_avg, 0.5 (log rho)^2; policy/clipfrac_avg, how often the
    clipped term is the larger loss; policy/entropy_avg, nats; val/ratio, rho.

    Raises ValueError if clip is not positive or clip_higher negative, or logp, advantage or entropy is missing.
    Use when a rollout is used for several gradient steps, with a critic or any other advantage: the usual choice.
    """
    require(clip > 0, f"ppo_clip: clip = {clip}: expected a positive number, such as 0.2")
    require(clip_higher >= 0, f"ppo_clip: clip_higher = {clip_higher}: expected 0 (symmetric) or more, such as 0.08")
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, rollout.mask)
    advantage_BT = constant(advantage_BT, rollout.mask)
    ratio_BT = exp_linear(log_ratio_BT)
    free_BT = -ratio_BT * advantage_BT
    clipped_BT = -jnp.clip(ratio_BT, 1 - clip, 1 + clip + clip_higher) * advantage_BT
    weight_BT = rollout.mask.astype(jnp.float32)
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT)
    metrics |= {
        "policy/clipfrac_avg": ((clipped_BT > free_BT).astype(jnp.float32), weight_BT),
        "val/ratio": (ratio_BT, weight_BT),
    }
    return Loss(value=jnp.maximum(free_BT, clipped_BT), weight=weight_BT, metrics=metrics)
