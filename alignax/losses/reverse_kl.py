"""Distillation by the student's distribution."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.distill import log_probs, prediction_metrics
from alignax.ops.kl import full_kl
from alignax.types import Distill, Loss


def reverse_kl(distill: Distill, *, temperature: Scalar = 1.0) -> Loss:
    """L = mean_t temperature^2 KL(p_student || p_teacher), nats per token, both distributions at that temperature.

    It makes the student leave what the teacher finds improbable (Agarwal et al. 2023, 2306.13649; Gu et al. 2023,
    MiniLLM, 2306.08543). Exact over the vocabulary at each token, but no gradient flows through which tokens come
    next: MiniLLM's sequence-level gradient has that term too. With a reference policy as the teacher it is a KL penalty
    without sampling noise in the token. `temperature` and its factor are Hinton's, as in `forward_kl`.
    The mean is over all tokens to learn. The teacher is a constant. value, weight: [B T]. Holds arrays of [B, T, V],
    several at once: cut the batch into microbatches if V is large.
    Metrics, at the same temperature: agreement (the same most probable token), entropy, teacher_entropy (nats).

    Raises ValueError if temperature is not positive.
    Use when a student is too small to copy all of the teacher, and learns on its own samples.
    """
    require(temperature > 0, f"reverse_kl: temperature = {temperature}: expected a positive number, such as 1.0")
    logp_BTV = log_probs(distill.logits, distill.mask, temperature)
    teacher_BTV = jax.lax.stop_gradient(log_probs(distill.teacher_logits, distill.mask, temperature))
    value_BT = temperature**2 * full_kl(logp_BTV, teacher_BTV)
    weight_BT = distill.mask.astype(jnp.float32)
    return Loss(value=value_BT, weight=weight_BT, metrics=prediction_metrics(logp_BTV, teacher_BTV, weight_BT))
