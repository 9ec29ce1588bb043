"""DPO that discounts what the longer reply has beyond the shorter one."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs, require
from alignax.ops.masked import masked_sum
from alignax.ops.preference import lengths, pair_metrics, pair_weight
from alignax.types import Loss, Pair


def ld_dpo(pair: Pair, *, beta: Scalar = 0.1, alpha: Scalar = 0.5) -> Loss:
    """L = -log sigmoid(beta (r_w - r_l)), mean over pairs, r = sum_t c_t (log pi(y_t) - log ref(y_t)),

    c_t = 1 for the first min(|y_w|, |y_l|) tokens of a reply and alpha beyond (Liu et al. 2024, 2409.06411), for policy
    and reference alike, as in TRL's `ld_alpha`. alpha = 1 is DPO; alpha = 0 compares equal lengths only.
    value, weight: [B]. Defaults: TRL's beta; alpha from the middle of its range.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta r, discounted; logps/* are plain sums.
    Raises ValueError if beta is not positive, alpha not in [0, 1], or ref_logp is missing.
    Use when a long reply wins or loses by its tail alone and lengths drift.
    """
    require(beta > 0, f"ld_dpo: beta = {beta}: expected a positive number, such as 0.1")
    require((alpha >= 0) & (alpha <= 1), f"ld_dpo: alpha = {alpha}: expected a discount in [0, 1], such as 0.5")
    shared_B1 = jnp.minimum(lengths(pair.chosen), lengths(pair.rejected))[:, None]
    rewards = []
    for side in (pair.chosen, pair.rejected):
        ref_logp_BT = jax.lax.stop_gradient(needs(side, "ref_logp")[0].astype(jnp.float32))
        ratio_BT = jnp.where(side.mask, side.logp.astype(jnp.float32) - ref_logp_BT, 0.0)
        place_BT = jnp.cumsum(side.mask, axis=1, dtype=jnp.float32)  # 1 at the first token of the reply
        rewards.append(beta * masked_sum(jnp.where(place_BT <= shared_B1, 1.0, alpha) * ratio_BT, side.mask, axis=1))
    chosen_B, rejected_B = rewards
    value_B = -jax.nn.log_sigmoid(chosen_B - rejected_B)
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
