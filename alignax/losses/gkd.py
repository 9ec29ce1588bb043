"""Distillation by a mixture of teacher and student."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.distill import jensen_shannon, log_probs, prediction_metrics
from alignax.types import Distill, Loss


def gkd(distill: Distill, *, beta: Scalar = 0.5, temperature: Scalar = 1.0) -> Loss:
    """L = mean_t temperature^2 JSD_beta(p_teacher, p_student), nats per token, a generalised Jensen-Shannon divergence:

        JSD_beta(P, Q) = beta KL(P || M) + (1 - beta) KL(Q || M),    M = beta P + (1 - beta) Q.

    Agarwal et al. 2023 (GKD, 2306.13649). JSD_beta / beta tends to KL(P || Q) as beta goes to 0, and JSD_beta /
    (1 - beta) to KL(Q || P) as beta goes to 1; the divergence itself vanishes at both ends. TRL puts the two KLs there
    instead (a jump), with beta = 0.5 by default as here; for them take `forward_kl` and `reverse_kl`. Its divergence
    lacks the factor temperature^2, which is Hinton's, as in `forward_kl`; its trainer calls it at temperature 1 only.
    The mean is over all tokens to learn. The teacher is a constant. value, weight: [B T]. Holds arrays of [B, T, V],
    several at once: cut the batch into microbatches if V is large.
    Metrics, at the same temperature: agreement (the same most probable token), entropy, teacher_entropy (nats).

    Raises ValueError if beta is not inside (0, 1), or temperature is not positive.
    Use when neither KL will do: a bounded loss between them, on the student's own samples.
    """
    require(
        (beta > 0) & (beta < 1),
        f"gkd: beta = {beta}: expected a number inside (0, 1); for the ends take the losses forward_kl and reverse_kl",
    )
    require(temperature > 0, f"gkd: temperature = {temperature}: expected a positive number, such as 1.0")
    logp_BTV = log_probs(distill.logits, distill.mask, temperature)
    teacher_BTV = jax.lax.stop_gradient(log_probs(distill.teacher_logits, distill.mask, temperature))
    value_BT = temperature**2 * jensen_shannon(teacher_BTV, logp_BTV, beta)
    weight_BT = distill.mask.astype(jnp.float32)
    return Loss(value=value_BT, weight=weight_BT, metrics=prediction_metrics(logp_BTV, teacher_BTV, weight_BT))
