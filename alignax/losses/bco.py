"""Binary classifier optimisation: thumbs up and down, with a shift."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, declares, require
from alignax.ops.masked import masked_mean
from alignax.ops.preference import log_ratio, row_counts, unpaired_metrics
from alignax.types import Loss, Unpaired


@declares(whole_batch=True)
def bco(unpaired: Unpaired, *, beta: Scalar = 0.01) -> Loss:
    """L = -log sigmoid(beta r - delta) for a desirable reply, -log sigmoid(delta - beta r) for another, mean over rows.

    r = log pi(y|x) - log ref(y|x), summed (Jung et al. 2024, 2404.04656, equation 8). delta, a constant, is the mean of
    two means of beta r, of the desirable replies and of the others (equation 7): halfway between them it makes the
    bound on DPO's loss tightest (theorem 4), however many there are of each; a batch of one label has its mean alone.

    It is of *this batch*: a loss has no memory for the moving average of the paper. TRL's running mean is over all
    replies, which is another delta where one label is more frequent. TRL and this loss take the mean over rows, where
    equation 8 adds the means of the two labels; the paper's density-ratio weights for differing prompts are left out.
    value, weight: [B]. Default: the paper's.

    Metrics: those of `ops.preference.unpaired_metrics`, for rewards beta r; delta.
    Raises ValueError if beta is not positive or ref_logp is missing.
    Use when feedback is a thumb per reply and there are no mismatched replies for KTO's reference point.
    """
    require(beta > 0, f"bco: beta = {beta}: expected a positive number, such as 0.01")
    counts_B = row_counts(unpaired.side)
    reward_B = beta * log_ratio(unpaired.side)
    labels_2B = jnp.stack([counts_B & unpaired.desirable, counts_B & ~unpaired.desirable])
    means_2 = masked_mean(jnp.broadcast_to(reward_B, labels_2B.shape), labels_2B, axis=1)
    delta = jax.lax.stop_gradient(masked_mean(means_2, labels_2B.any(1)))
    sign_B = jnp.where(unpaired.desirable, 1.0, -1.0)
    value_B = -jax.nn.log_sigmoid(sign_B * (reward_B - delta))
    weight_B = counts_B.astype(jnp.float32)
    metrics = unpaired_metrics(unpaired, reward_B) | {"delta": (jnp.broadcast_to(delta, reward_B.shape), weight_B)}
    return Loss(value=value_B, weight=weight_B, metrics=metrics)
