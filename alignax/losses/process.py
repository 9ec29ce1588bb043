"""The process reward model's loss on verdicts over steps."""

import jax
import jax.numpy as jnp

from alignax.types import Loss, Stepwise


def process(stepwise: Stepwise) -> Loss:
    """L = mean over all steps of -t log sigmoid(z) - (1 - t) log sigmoid(-z), t the probability that the step is right.

    One verdict per step, read at its last token (Uesato et al. 2022, 2211.14275; Lightman et al. 2023, 2305.20050), by
    hand (t = 0 or 1) or as the rate at which continuations reach the answer (Wang et al. 2023, Math-Shepherd,
    2312.08935). The mean is over the steps of the batch: a long solution weighs more than a short one.
    value, weight: [B T]; t is a constant. Metrics: accuracy (z > 0 where t > 1/2), step_probability (mean sigmoid(z)).

    Use when each step of a solution was judged, not only its end.
    """
    logit_BT = jnp.where(stepwise.mask, stepwise.logit.astype(jnp.float32), 0.0)
    target_BT = jnp.where(stepwise.mask, jax.lax.stop_gradient(stepwise.target.astype(jnp.float32)), 0.0)
    right_BT, wrong_BT = -jax.nn.log_sigmoid(logit_BT), -jax.nn.log_sigmoid(-logit_BT)
    weight_BT = stepwise.mask.astype(jnp.float32)
    metrics = {
        "accuracy": (((logit_BT > 0) == (target_BT > 0.5)).astype(jnp.float32), weight_BT),
        "step_probability": (jax.nn.sigmoid(logit_BT), weight_BT),
    }
    return Loss(value=target_BT * right_BT + (1 - target_BT) * wrong_BT, weight=weight_BT, metrics=metrics)
