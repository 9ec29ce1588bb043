"""Divergences between a student's and a teacher's predictions, over the whole vocabulary."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from alignax.ops.checks import Scalar
from alignax.ops.kl import full_kl
from alignax.ops.logprobs import OUTSIDE
from alignax.types import Metric


def log_probs(
    logits_BTV: Float[Array, "B T V"], mask_BT: Bool[Array, "B T"], temperature: Scalar
) -> Float[Array, "B T V"]:
    """log softmax(logits / temperature) in float32; uniform outside the mask. A logit of -inf is taken as -1e30."""
    safe_BTV = jnp.where(mask_BT[:, :, None], logits_BTV.astype(jnp.float32), 0.0)
    return jax.nn.log_softmax(jnp.maximum(safe_BTV, OUTSIDE) / temperature, axis=-1)


def jensen_shannon(
    logp_p: Float[Array, "*shape V"], logp_q: Float[Array, "*shape V"], beta: Scalar
) -> Float[Array, "*shape"]:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, nats; beta strictly inside (0, 1)."""
    logp_m = jnp.logaddexp(jnp.log(beta) + logp_p, jnp.log1p(-beta) + logp_q)
    return beta * full_kl(logp_p, logp_m) + (1 - beta) * full_kl(logp_q, logp_m)


def prediction_metrics(
    logp_BTV: Float[Array, "B T V"], teacher_logp_BTV: Float[Array, "B T V"], weight_BT: Float[Array, "B T"]
) -> dict[str, Metric]:
    """agreement (the same most probable token), entropy of the student and of the teacher in nats; token means."""
    agreement_BT = jnp.argmax(logp_BTV, axis=-1) == jnp.argmax(teacher_logp_BTV, axis=-1)
    return {
        "agreement": (agreement_BT.astype(jnp.float32), weight_BT),
        "entropy": (-jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1), weight_BT),
        "teacher_entropy": (-jnp.sum(jnp.exp(teacher_logp_BTV) * teacher_logp_BTV, axis=-1), weight_BT),
    }
