"""The reward model's loss on rankings: the likelihood of the whole order."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import require
from alignax.ops.comparison import placed, ranking_metrics
from alignax.ops.logprobs import OUTSIDE
from alignax.types import Loss, Ranked


def plackett_luce(ranked: Ranked, *, top: int = 0) -> Loss:
    """L = -sum_k log(e^{r_k} / sum_{j >= k} e^{r_j}), replies in the annotator's order; mean over prompts.

    The likelihood of picking the best, then the best of the rest, and so on (Plackett 1975; Luce 1959; Rafailov et al.
    2023, appendix A.3, for DPO). `top` > 0 keeps the first `top` picks, for an annotator who did not order the rest:
    top = 1 is the choice of the best of K (Ziegler et al. 2019). A sum, not a mean, over picks: it is a likelihood.
    value, weight: [B]; a prompt counts if two of its replies do.
    Metrics: accuracy and margin over the pairs whose order is known, mean per prompt and then over prompts;
    mean_reward over replies.

    Raises ValueError if top is negative.
    Use when each prompt has several replies in order, ranked by one annotator at once.
    """
    require(top >= 0, f"plackett_luce: top = {top}: expected 0 (every place is known) or the number of known places")
    score_BK = jnp.where(ranked.mask, ranked.score.astype(jnp.float32), 0.0)
    rest_BK = jax.lax.cumlogsumexp(jnp.where(ranked.mask, score_BK, OUTSIDE), axis=1, reverse=True)
    value_B = jnp.sum(rest_BK - score_BK, axis=1, where=placed(ranked.mask, top))
    weight_B = (jnp.sum(ranked.mask, axis=1) >= 2).astype(jnp.float32)
    return Loss(value=value_B, weight=weight_B, metrics=ranking_metrics(score_BK, ranked.mask, top))
