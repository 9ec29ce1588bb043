"""The critic's loss of proximal policy optimisation."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs, require
from alignax.types import Loss, Rollout


def value_clip(rollout: Rollout, *, clip: Scalar = 0.2) -> Loss:
    """L = mean_t 0.5 max((V_t - R_t)^2, (V_old,t + clamp(V_t - V_old,t, -clip, clip) - R_t)^2).

    The critic moves at most `clip` (in units of the return) away from its value at rollout time (Ziegler et al. 2019;
    TRL's `cliprange_value`). The mean is over all action tokens; R and V_old are constants. value, weight: [B T].
    Metric: val/clipfrac_avg, how often the clipped error is the larger one. The factor 0.5 is inside.

    Raises ValueError if clip is not positive, or value, old_value or returns is missing.
    Use when a critic gives the baseline: the other half of PPO.
    """
    require(clip > 0, f"value_clip: clip = {clip}: expected a positive number; a large one, such as 1e6, turns it off")
    mask_BT = rollout.mask
    value_BT, old_BT, returns_BT = (
        jnp.where(mask_BT, x_BT.astype(jnp.float32), 0.0) for x_BT in needs(rollout, "value", "old_value", "returns")
    )
    old_BT, returns_BT = jax.lax.stop_gradient((old_BT, returns_BT))
    near_BT = old_BT + jnp.clip(value_BT - old_BT, -clip, clip)
    free_BT = jnp.square(value_BT - returns_BT)
    clipped_BT = jnp.square(near_BT - returns_BT)
    weight_BT = mask_BT.astype(jnp.float32)
    # within the range the two are equal but for rounding, which is no clipping
    counts_BT = (clipped_BT > free_BT) & (jnp.abs(value_BT - old_BT) > clip)
    metrics = {"val/clipfrac_avg": (counts_BT.astype(jnp.float32), weight_BT)}
    return Loss(value=0.5 * jnp.maximum(free_BT, clipped_BT), weight=weight_BT, metrics=metrics)
