"""The clipped policy loss of proximal policy optimisation."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs, require
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


def ppo_clip(rollout: Rollout, *, clip: Scalar = 0.2) -> Loss:
    """L = -mean_t min(rho_t A_t, clip(rho_t, 1 - clip, 1 + clip) A_t), rho_t = pi(y_t) / pi_old(y_t).

    Schulman et al. 2017, equation 7. The mean is over all action tokens of the batch. Advantages and old
    log-probabilities are constants. rho grows linearly beyond e^20. value, weight: [B T].

    Metrics, all token means under the mask: policy/approxkl_avg, 0.5 (log rho)^2; policy/clipfrac_avg, how often the
    clipped term is the larger loss; policy/entropy_avg, nats; val/ratio, rho.

    Raises ValueError if clip is not positive, or logp, advantage or entropy is missing.
    Use when a rollout is used for several updates: the policy's loss of PPO.
    """
    require(clip > 0, f"ppo_clip: clip = {clip}: expected a positive number, such as 0.2")
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    mask_BT = rollout.mask
    old_logp_BT = jax.lax.stop_gradient(rollout.old_logp.astype(jnp.float32))
    advantage_BT = jnp.where(mask_BT, jax.lax.stop_gradient(advantage_BT.astype(jnp.float32)), 0.0)
    log_ratio_BT = jnp.where(mask_BT, logp_BT.astype(jnp.float32) - old_logp_BT, 0.0)
    ratio_BT = exp_linear(log_ratio_BT)
    free_BT = -ratio_BT * advantage_BT
    clipped_BT = -jnp.clip(ratio_BT, 1 - clip, 1 + clip) * advantage_BT
    weight_BT = mask_BT.astype(jnp.float32)
    metrics = {
        "policy/approxkl_avg": (0.5 * jnp.square(log_ratio_BT), weight_BT),
        "policy/clipfrac_avg": ((clipped_BT > free_BT).astype(jnp.float32), weight_BT),
        "policy/entropy_avg": (entropy_BT.astype(jnp.float32), weight_BT),
        "val/ratio": (ratio_BT, weight_BT),
    }
    return Loss(value=jnp.maximum(free_BT, clipped_BT), weight=weight_BT, metrics=metrics)
