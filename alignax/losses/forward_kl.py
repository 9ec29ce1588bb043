"""Distillation by the teacher's distribution."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.distill import log_probs, prediction_metrics
from alignax.ops.kl import full_kl
from alignax.types import Distill, Loss


def forward_kl(distill: Distill, *, temperature: Scalar = 1.0) -> Loss:
    """L = mean_t temperature^2 KL(p_teacher || p_student), nats per token, both distributions at that temperature.

    Hinton et al. 2015 (1503.02531), whose factor temperature^2 keeps the size of the gradient. It makes the student
    cover all that the teacher finds probable. The mean is over all tokens to learn. The teacher is a constant.
    value, weight: [B T]. Holds arrays of [B, T, V], several at once: cut the batch into microbatches if V is large.
    Metrics, at the same temperature: agreement (the same most probable token), entropy, teacher_entropy (nats).

    Raises ValueError if temperature is not positive.
    Use when a student should copy a teacher and is large enough to.
    """
    require(temperature > 0, f"forward_kl: temperature = {temperature}: expected a positive number, such as 1.0")
    logp_BTV = log_probs(distill.logits, distill.mask, temperature)
    teacher_BTV = jax.lax.stop_gradient(log_probs(distill.teacher_logits, distill.mask, temperature))
    value_BT = temperature**2 * full_kl(teacher_BTV, logp_BTV)
    weight_BT = distill.mask.astype(jnp.float32)
    return Loss(value=value_BT, weight=weight_BT, metrics=prediction_metrics(logp_BTV, teacher_BTV, weight_BT))
