"""Alignment by optimal transport, for chosen and rejected replies that need not belong together."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, declares, require
from alignax.ops.preference import log_ratios, pair_counts, pair_metrics, sort_rows
from alignax.types import Loss, Pair


@declares(whole_batch=True)
def aot_unpaired(pair: Pair, *, beta: Scalar = 0.01) -> Loss:
    """L = -mean_i log sigmoid(beta d_i), d = sort_B(r_w) - sort_B(r_l), r = log pi(y|x) - log ref(y|x), summed.

    Unpaired AOT (Melnyk et al. 2024, 2406.05882): rewards of chosen replies shall dominate those of rejected ones in
    distribution. The chosen and rejected reply of a row may answer different prompts: the loss is the same for every
    way of pairing them within the batch. The rows of `value` are ranks. TRL adds label smoothing. value, weight: [B].

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta r of each row.
    Raises ValueError if beta is not positive or ref_logp is missing.
    Use when there are as many good as bad replies, but not to the same prompts.
    """
    require(beta > 0, f"aot_unpaired: beta = {beta}: expected a positive number, such as 0.01")
    counts_B = pair_counts(pair)
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    gap_B = sort_rows(chosen_B, counts_B) - sort_rows(rejected_B, counts_B)
    weight_B = (jnp.arange(counts_B.shape[0]) < jnp.sum(counts_B)).astype(jnp.float32)
    metrics = pair_metrics(pair, chosen_B, rejected_B)
    return Loss(value=-jax.nn.log_sigmoid(gap_B), weight=weight_B, metrics=metrics)
