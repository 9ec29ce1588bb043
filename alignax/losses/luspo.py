"""Length-unbiased sequence policy optimisation."""

import jax.numpy as jnp

from alignax.losses.gspo import gspo
from alignax.ops.checks import Scalar
from alignax.types import Loss, Rollout


def luspo(rollout: Rollout, *, clip_low: Scalar = 3e-4, clip_high: Scalar = 4e-4) -> Loss:
    """L = -mean_i |y_i| min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i), s_i^|y_i| = pi(y_i) / pi_old(y_i).

    arXiv 2602.05261: GSPO with each reply times its length. The slope of s_i has a factor 1 / |y_i|, by which GSPO lets
    a token of a long reply weigh less; here on-policy every token weighs the same, and the gradient is the policy
    gradient's. It is TRL's loss_type "luspo" with `importance_sampling_level` "sequence", where the mean counts rows
    without action tokens too. Advantages and old log-probabilities are constants. value, weight: [B], rows with an
    action token.

    Metrics: those of `gspo`.

    Raises ValueError if a clip is not positive, or logp, advantage or entropy is missing.
    Use when GSPO's replies grow shorter, or longer, for no reason of the reward.
    """
    loss = gspo(rollout, clip_low=clip_low, clip_high=clip_high)
    return loss.replace(value=loss.value * jnp.sum(rollout.mask, axis=1, dtype=jnp.float32))
