"""The reward model's loss on absolute ratings."""

import jax
import jax.numpy as jnp

from alignax.types import Loss, Rated


def regression(rated: Rated) -> Loss:
    """L = mean (s - t)^2 over all ratings that were given, s the predicted and t the given rating.

    One attribute or several with a head each (helpfulness, correctness, ...): the multi-objective reward model of
    HelpSteer2 (Wang et al. 2024, 2406.08673) and ArmoRM (Wang et al. 2024, 2406.12845). The mean is over ratings, so
    an attribute that was rated more often weighs more; ratings in unlike units should be standardised before.
    value, weight: [B A]; t is a constant. Metrics: absolute_error |s - t|; mean_reward, the mean prediction.

    Use when replies carry ratings on a scale of equal steps, one or several attributes.
    """
    score_BA = jnp.where(rated.mask, rated.score.astype(jnp.float32), 0.0)
    target_BA = jnp.where(rated.mask, jax.lax.stop_gradient(rated.target.astype(jnp.float32)), 0.0)
    weight_BA = rated.mask.astype(jnp.float32)
    metrics = {"absolute_error": (jnp.abs(score_BA - target_BA), weight_BA), "mean_reward": (score_BA, weight_BA)}
    return Loss(value=jnp.square(score_BA - target_BA), weight=weight_BA, metrics=metrics)
