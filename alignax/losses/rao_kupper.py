"""The reward model's loss on preferences with ties, by a threshold."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs, require
from alignax.ops.comparison import pair_metrics
from alignax.types import Loss, Scored


def rao_kupper(scored: Scored, *, theta: Scalar = 3.0) -> Loss:
    """L = -log P(what the annotator said), mean over pairs, where with d = r_w - r_l

        P(w wins) = sigmoid(d - log theta),    P(tie) = (theta^2 - 1) sigmoid(d - log theta) sigmoid(-d - log theta).

    Rao & Kupper 1967: the annotator decides only if he sees a difference beyond log theta. The default is a choice of
    ours: two replies of equal score are then tied half of the time, P(tie) = (theta - 1) / (theta + 1) at d = 0.
    Chen et al. 2024 (2409.17431) use the model in DPO. value, weight: [B].
    Metrics: accuracy (r_w > r_l) and margin (r_w - r_l) over decided pairs; mean_reward; tie_probability, P(tie) over
    all pairs, to hold against the share of ties.

    Raises ValueError if theta < 1, if theta = 1 (no ties) and a pair is tied, or if tie is missing.
    Use when annotators may say "the same", and do so mostly for small differences.
    """
    (tie_B,) = needs(scored, "tie")
    require(theta >= 1, f"rao_kupper: theta = {theta}: expected 1 (no ties, Bradley-Terry) or more, such as 3.0")
    require(
        (theta > 1) | ~jnp.any(tie_B & scored.mask),
        f"rao_kupper: theta = {theta}, but there are ties, which it calls impossible: expected > 1, such as 3.0",
    )
    chosen_B = jnp.where(scored.mask, scored.chosen.astype(jnp.float32), 0.0)
    rejected_B = jnp.where(scored.mask, scored.rejected.astype(jnp.float32), 0.0)
    margin_B, threshold = chosen_B - rejected_B, jnp.log(theta)
    win_B = jax.nn.log_sigmoid(margin_B - threshold)
    tie_logp_B = jnp.log(jnp.expm1(2 * threshold)) + win_B + jax.nn.log_sigmoid(-margin_B - threshold)
    metrics = pair_metrics(chosen_B, rejected_B, scored.mask, tie_B)
    metrics["tie_probability"] = (jnp.exp(tie_logp_B), scored.mask.astype(jnp.float32))
    value_B = -jnp.where(tie_B & scored.mask, tie_logp_B, win_B)
    return Loss(value=value_B, weight=scored.mask.astype(jnp.float32), metrics=metrics)
