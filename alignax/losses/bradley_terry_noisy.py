"""The reward model's loss on preferences of which a known share is the wrong way round."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.comparison import pair_metrics
from alignax.types import Loss, Scored


def bradley_terry_noisy(scored: Scored, *, flip_rate: Scalar = 0.1, form: str = "conservative") -> Loss:
    """Bradley-Terry under labels that are flipped with probability e = flip_rate, mean over pairs. With d = r_w - r_l,

        "conservative":  L = -(1 - e) log sigmoid(d) - e log sigmoid(-d)
        "unbiased":      L = [-(1 - e) log sigmoid(d) + e log sigmoid(-d)] / (1 - 2 e)

    The first is label smoothing (Mitchell 2023, for DPO): it is least at sigmoid(d) = 1 - e, so d stays bounded. The
    second has, over the flips, the expected value of the loss on clean labels (Natarajan et al. 2013; Chowdhury et al.
    2024, 2403.00409, for DPO); it has no lower bound. The default rate is that of TRL's robust DPO.
    value, weight: [B]. Metrics, against the labels as they are: accuracy (r_w > r_l), margin, mean_reward.

    Raises ValueError for an unknown form, or a flip rate outside [0, 0.5).
    Use when a known share of the preferences is wrong: "conservative" to be safe, "unbiased" if the rate is exact.
    """
    require(
        (flip_rate >= 0) & (flip_rate < 0.5),
        f"bradley_terry_noisy: flip_rate = {flip_rate}: expected a rate in [0, 0.5); at 0.5 a label tells nothing",
    )
    require(
        form in ("conservative", "unbiased"),
        f"bradley_terry_noisy: form = {form!r}: expected 'conservative' or 'unbiased'",
    )
    chosen_B = jnp.where(scored.mask, scored.chosen.astype(jnp.float32), 0.0)
    rejected_B = jnp.where(scored.mask, scored.rejected.astype(jnp.float32), 0.0)
    kept_B = -jax.nn.log_sigmoid(chosen_B - rejected_B)
    flipped_B = -jax.nn.log_sigmoid(rejected_B - chosen_B)
    if form == "conservative":
        value_B = (1 - flip_rate) * kept_B + flip_rate * flipped_B
    else:
        value_B = ((1 - flip_rate) * kept_B - flip_rate * flipped_B) / (1 - 2 * flip_rate)
    metrics = pair_metrics(chosen_B, rejected_B, scored.mask)
    return Loss(value=value_B, weight=scored.mask.astype(jnp.float32), metrics=metrics)
