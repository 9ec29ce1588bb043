"""Supervised fine-tuning."""

import jax.numpy as jnp

from alignax.types import Demo, Loss


def sft(demo: Demo) -> Loss:
    """Negative log-likelihood of the completion: L = -mean_t log pi(y_t | x, y_<t), nats per token.

    The mean is over all completion tokens of the batch (end of sequence included), so a long reply weighs more than a
    short one. The first of the three steps of InstructGPT (Ouyang et al. 2022, 2203.02155).
    value, weight: [B T]. Metrics: mean_token_accuracy, entropy; the number of tokens is the sum of weights.

    Use when you have replies to imitate.
    """
    nll_BT = jnp.where(demo.mask, -demo.logp.astype(jnp.float32), 0.0)
    weight_BT = demo.mask.astype(jnp.float32)
    metrics = {
        "mean_token_accuracy": (demo.correct.astype(jnp.float32), weight_BT),
        "entropy": (demo.entropy.astype(jnp.float32), weight_BT),
    }
    return Loss(value=nll_BT, weight=weight_BT, metrics=metrics)
