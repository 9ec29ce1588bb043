"""What the clipped policy objectives share: guarded ratios, the clipped surrogate, covariances and metrics."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from alignax.ops.checks import Scalar, require
from alignax.ops.masked import masked_mean
from alignax.types import Metric


def check_clip(name: str, clip_low: Scalar, clip_high: Scalar) -> None:
    """Raises ValueError unless both ends of the range [1 - clip_low, 1 + clip_high] lie off 1."""
    require(clip_low > 0, f"{name}: clip_low = {clip_low}: expected a positive number; one above 1 never clips")
    require(clip_high > 0, f"{name}: clip_high = {clip_high}: expected a positive number; a large one never clips")


def constant(x_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """Data in float32: no gradient, zeros where nothing counts."""
    return jnp.where(mask_BT, jax.lax.stop_gradient(x_BT.astype(jnp.float32)), 0.0)


def log_ratio(
    logp_BT: Float[Array, "B T"], old_logp_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """log pi - log pi_old in float32, the old one a constant; zeros where nothing counts."""
    old_logp_BT = jax.lax.stop_gradient(old_logp_BT.astype(jnp.float32))
    return jnp.where(mask_BT, logp_BT.astype(jnp.float32) - old_logp_BT, 0.0)


def clipped(
    ratio: Float[Array, "*shape"], advantage: Float[Array, "*shape"], clip_low: Scalar, clip_high: Scalar
) -> Float[Array, "*shape"]:
    """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), to be maximised (Schulman et al. 2017, equation 7)."""
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)


def clip_metrics(
    ratio: Float[Array, "*shape"],
    advantage: Float[Array, "*shape"],
    clip_low: Scalar,
    clip_high: Scalar,
    weight: Float[Array, "*shape"],
) -> dict[str, Metric]:
    """How often the clip stops the gradient, under TRL's names: below (A < 0), above (A > 0), and either."""
    low = (ratio < 1 - clip_low) & (advantage < 0)
    high = (ratio > 1 + clip_high) & (advantage > 0)
    return {
        "clip_ratio/low_mean": (low.astype(jnp.float32), weight),
        "clip_ratio/high_mean": (high.astype(jnp.float32), weight),
        "clip_ratio/region_mean": ((low | high).astype(jnp.float32), weight),
    }


def drift_metrics(
    log_ratio_BT: Float[Array, "B T"], entropy_BT: Float[Array, "B T"], weight_BT: Float[Array, "B T"]
) -> dict[str, Metric]:
    """policy/approxkl_avg, 0.5 (log rho)^2, and policy/entropy_avg, nats: token means under the mask."""
    return {
        "policy/approxkl_avg": (0.5 * jnp.square(log_ratio_BT), weight_BT),
        "policy/entropy_avg": (entropy_BT.astype(jnp.float32), weight_BT),
    }


def covariance(
    logp_BT: Float[Array, "B T"], advantage_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
    """(log pi - mean log pi)(A - mean A) per token, a constant; zeros where nothing counts (Cui et al. 2025).

    Both means are over the whole batch. The mean of it is the covariance that drives the policy's entropy down.
    """
    logp_BT, advantage_BT = constant(logp_BT, mask_BT), constant(advantage_BT, mask_BT)
    centred = [x_BT - masked_mean(x_BT, mask_BT) for x_BT in (logp_BT, advantage_BT)]
    return jnp.where(mask_BT, centred[0] * centred[1], 0.0)
