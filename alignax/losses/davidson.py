"""The reward model's loss on preferences with ties, by the geometric mean."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs, require
from alignax.ops.comparison import pair_metrics
from alignax.types import Loss, Scored


def davidson(scored: Scored, *, nu: Scalar = 2.0) -> Loss:
    """L = -log P(what the annotator said), mean over pairs, where with d = r_w - r_l, p = e^r

        P(w wins) = p_w / (p_w + p_l + nu sqrt(p_w p_l)) = sigmoid(d) / (1 + nu g),    P(tie) = nu g / (1 + nu g),

    and g = sqrt(sigmoid(d) sigmoid(-d)). Davidson 1970: among decided pairs it is Bradley-Terry. The default is a
    choice of ours: two replies of equal score are then tied half of the time, P(tie) = nu / (nu + 2) at d = 0.
    Chen et al. 2024 (2409.17431) use the model in DPO. value, weight: [B].
    Metrics: accuracy (r_w > r_l) and margin (r_w - r_l) over decided pairs; mean_reward; tie_probability, P(tie) over
    all pairs, to hold against the share of ties.

    Raises ValueError if nu is negative, if nu = 0 (no ties) and a pair is tied, or if tie is missing.
    Use when annotators may say "the same", and decided pairs should still follow Bradley-Terry.
    """
    (tie_B,) = needs(scored, "tie")
    require(nu >= 0, f"davidson: nu = {nu}: expected 0 (no ties, Bradley-Terry) or more, such as 2.0")
    require(
        (nu > 0) | ~jnp.any(tie_B & scored.mask),
        f"davidson: nu = {nu}, but there are ties, which it calls impossible: expected > 0, such as 2.0",
    )
    chosen_B = jnp.where(scored.mask, scored.chosen.astype(jnp.float32), 0.0)
    rejected_B = jnp.where(scored.mask, scored.rejected.astype(jnp.float32), 0.0)
    win_B = jax.nn.log_sigmoid(chosen_B - rejected_B)  # of a pair that is decided
    log_g_B = 0.5 * (win_B + jax.nn.log_sigmoid(rejected_B - chosen_B))
    log_total_B = jnp.log1p(nu * jnp.exp(log_g_B))
    tie_logp_B = jnp.log(nu) + log_g_B - log_total_B
    metrics = pair_metrics(chosen_B, rejected_B, scored.mask, tie_B)
    metrics["tie_probability"] = (jnp.exp(tie_logp_B), scored.mask.astype(jnp.float32))
    value_B = -jnp.where(tie_B & scored.mask, tie_logp_B, win_B - log_total_B)
    return Loss(value=value_B, weight=scored.mask.astype(jnp.float32), metrics=metrics)
