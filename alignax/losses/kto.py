"""Kahneman-Tversky optimisation: thumbs up and down."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, declares, needs, require
from alignax.ops.masked import masked_mean
from alignax.ops.preference import log_ratio, row_counts, unpaired_metrics
from alignax.types import Loss, Unpaired


@declares(whole_batch=True)
def kto(
    unpaired: Unpaired, *, beta: Scalar = 0.1, desirable_weight: Scalar = 1.0, undesirable_weight: Scalar = 1.0
) -> Loss:
    """L = l_D (1 - sigmoid(beta (r - z0))) for a desirable reply, l_U (1 - sigmoid(beta (z0 - r))) for another,

    mean over rows, r = log pi(y|x) - log ref(y|x), summed, l_D and l_U the two weights, and z0 = max(0, batch mean of r
    of the *mismatched* replies), a constant: how far the policy as a whole has moved (Ethayarajh et al. 2024,
    2402.01306; TRL cites equation 7). A row without a mismatched reply counts, but not in z0. The weights stand in the
    value, not in the denominator, as in TRL: keep l_D n_D / (l_U n_U) near 1. value, weight: [B]. Defaults: theirs.

    Metrics: those of `ops.preference.unpaired_metrics`, for rewards beta r; kl, the mean behind z0, before it is cut
    at 0 (TRL logs it after).
    Raises ValueError if beta or a weight is not positive, ref_logp or mismatched is missing, or all replies of the
    batch carry one label (where the labels are concrete; under jit `data.encode` has looked at the whole set).
    Use when feedback is a thumb per reply, not a comparison; batches must be shuffled across labels.
    """
    require(beta > 0, f"kto: beta = {beta}: expected a positive number, such as 0.1")
    require(desirable_weight > 0, f"kto: desirable_weight = {desirable_weight}: expected a positive number")
    require(undesirable_weight > 0, f"kto: undesirable_weight = {undesirable_weight}: expected a positive number")
    (mismatched,) = needs(unpaired, "mismatched")
    up_B, counts_B = unpaired.desirable, row_counts(unpaired.side)
    both = jnp.any(counts_B & up_B) == jnp.any(counts_B & ~up_B)  # or neither, in a batch without rows that count
    require(both, "kto: desirable: all replies of the batch have one label: expected both; shuffle the rows")
    drift_B, known_B = log_ratio(mismatched), counts_B & row_counts(mismatched)
    z0 = jax.lax.stop_gradient(jnp.maximum(masked_mean(drift_B, known_B), 0.0))
    ratio_B = log_ratio(unpaired.side)
    gain_B = desirable_weight * jax.nn.sigmoid(-beta * (ratio_B - z0))
    loss_B = undesirable_weight * jax.nn.sigmoid(-beta * (z0 - ratio_B))
    value_B = jnp.where(up_B, gain_B, loss_B)
    metrics = unpaired_metrics(unpaired, beta * ratio_B) | {"kl": (drift_B, known_B.astype(jnp.float32))}
    return Loss(value=value_B, weight=counts_B.astype(jnp.float32), metrics=metrics)
