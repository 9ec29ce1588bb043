"""What losses on scores share: which pairs of a ranking count, and the metrics of a reward model."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from alignax.ops.masked import masked_mean
from alignax.types import Metric


def pair_metrics(
    chosen_B: Float[Array, " B"],
    rejected_B: Float[Array, " B"],
    mask_B: Bool[Array, " B"],
    tie_B: Bool[Array, " B"] | None = None,
) -> dict[str, Metric]:
    """accuracy (r_w > r_l; equal scores are no success) and margin (r_w - r_l) of decided pairs; mean_reward of all."""
    weight_B = mask_B.astype(jnp.float32)
    decided_B = weight_B if tie_B is None else (mask_B & ~tie_B).astype(jnp.float32)
    margin_B = chosen_B - rejected_B
    return {
        "accuracy": ((margin_B > 0).astype(jnp.float32), decided_B),
        "margin": (margin_B, decided_B),
        "mean_reward": (0.5 * (chosen_B + rejected_B), weight_B),
    }


def placed(mask_BK: Bool[Array, "B K"], top: int) -> Bool[Array, "B K"]:
    """Replies whose place the annotator gave: the first `top` that count, or all that count if `top` is 0."""
    return mask_BK & (jnp.cumsum(mask_BK, axis=1) <= top) if top else mask_BK


def ordered_pairs(
    score_BK: Float[Array, "B K"], mask_BK: Bool[Array, "B K"], top: int = 0
) -> tuple[Float[Array, "B K K"], Bool[Array, "B K K"]]:
    """r_i - r_j, and whether the pair counts: i is placed (see `placed`) before j. Scores outside the mask are 0."""
    before_KK = jnp.arange(mask_BK.shape[1])[:, None] < jnp.arange(mask_BK.shape[1])[None, :]
    pair_BKK = placed(mask_BK, top)[:, :, None] & mask_BK[:, None, :] & before_KK[None]
    score_BK = jnp.where(mask_BK, score_BK.astype(jnp.float32), 0.0)
    return score_BK[:, :, None] - score_BK[:, None, :], pair_BKK


def ranking_metrics(score_BK: Float[Array, "B K"], mask_BK: Bool[Array, "B K"], top: int = 0) -> dict[str, Metric]:
    """accuracy and margin over the ordered pairs of each prompt, then over prompts; mean_reward over replies."""
    margin_BKK, pair_BKK = ordered_pairs(score_BK, mask_BK, top)
    weight_B = jnp.any(pair_BKK, axis=(1, 2)).astype(jnp.float32)
    return {
        "accuracy": (masked_mean((margin_BKK > 0).astype(jnp.float32), pair_BKK, axis=(1, 2)), weight_B),
        "margin": (masked_mean(margin_BKK, pair_BKK, axis=(1, 2)), weight_B),
        "mean_reward": (score_BK.astype(jnp.float32), mask_BK.astype(jnp.float32)),
    }
