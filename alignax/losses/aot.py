"""Alignment by optimal transport, for paired preferences."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, declares, needs, require
from alignax.ops.masked import masked_sum
from alignax.ops.preference import log_ratios, pair_counts, pair_metrics, sort_rows, summed_logp
from alignax.types import Loss, Pair


@declares(whole_batch=True)
def aot(pair: Pair, *, beta: Scalar = 0.01) -> Loss:
    """L = -mean_i log sigmoid(beta d_i), d = sort_B(log pi(y_w) - log pi(y_l)) - sort_B(log ref(y_w) - log ref(y_l)).

    Paired AOT (Melnyk et al. 2024, 2406.05882): the policy's margins shall dominate the reference's in distribution, so
    the i-th smallest meets the i-th smallest, whichever pairs they come from. Sums over the reply; the rows of `value`
    are ranks, not pairs. TRL adds label smoothing. value, weight: [B]; a pair counts if both sides have tokens.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta (log pi - log ref) of each pair.
    Raises ValueError if beta is not positive or ref_logp is missing.
    Use when the distribution of margins over the data matters more than any one pair.
    """
    require(beta > 0, f"aot: beta = {beta}: expected a positive number, such as 0.01")
    counts_B = pair_counts(pair)
    policy_B = summed_logp(pair.chosen) - summed_logp(pair.rejected)
    ref_w_B, ref_l_B = (
        masked_sum(needs(side, "ref_logp")[0], side.mask, axis=1) for side in (pair.chosen, pair.rejected)
    )
    reference_B = jax.lax.stop_gradient(ref_w_B - ref_l_B)
    gap_B = sort_rows(policy_B, counts_B) - sort_rows(reference_B, counts_B)
    weight_B = (jnp.arange(counts_B.shape[0]) < jnp.sum(counts_B)).astype(jnp.float32)
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    metrics = pair_metrics(pair, chosen_B, rejected_B)
    return Loss(value=-jax.nn.log_sigmoid(beta * gap_B), weight=weight_B, metrics=metrics)
