"""The reward model's loss on rankings: every pair of one prompt."""

import jax
import jax.numpy as jnp

from alignax.ops.comparison import ordered_pairs, ranking_metrics
from alignax.ops.masked import masked_mean
from alignax.types import Loss, Ranked


def ranked_pairs(ranked: Ranked) -> Loss:
    """L = -1 / C(K,2) sum_{i<j} log sigmoid(r_i - r_j), replies in the annotator's order; mean over prompts.

    Ouyang et al. 2022 (InstructGPT, 2203.02155), equation 1. The C(K,2) pairs of a prompt are one element of the
    batch: taken apart and shuffled they overfit within an epoch, because each reply then comes K - 1 times.
    K is the number of this prompt's replies that count, so every prompt weighs the same. value, weight: [B]; a prompt
    counts if two of its replies do. Metrics: accuracy and margin, mean over the pairs of a prompt and then over
    prompts; mean_reward over replies.

    Use when each prompt has several replies in order, and the order was put together from pairs.
    """
    margin_BKK, pair_BKK = ordered_pairs(ranked.score, ranked.mask)
    value_B = masked_mean(-jax.nn.log_sigmoid(margin_BKK), pair_BKK, axis=(1, 2))
    weight_B = jnp.any(pair_BKK, axis=(1, 2)).astype(jnp.float32)
    return Loss(value=value_B, weight=weight_B, metrics=ranking_metrics(ranked.score, ranked.mask))
