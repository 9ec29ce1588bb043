"""The reward model's loss on preferences of known strength."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs, require
from alignax.ops.comparison import pair_metrics
from alignax.types import Loss, Scored


def bradley_terry_margin(scored: Scored, *, scale: Scalar = 1.0, centering: Scalar = 0.0) -> Loss:
    """L = -log sigmoid(r_w - r_l - scale m) + centering (r_w + r_l)^2, mean over pairs, with m = `margin`.

    Touvron et al. 2023 (Llama 2, 2307.09288), equation 2: a pair of which the annotator was sure must be further
    apart. Their small margins are m = 1, 2/3, 1/3, 0 from "significantly" to "negligibly better"; their large ones,
    3, 2, 1, 0, are scale = 3; TRL's "margin" is scale times m. The second term is that of `bradley_terry`.
    value, weight: [B]; m is a constant.
    Metrics, none of which subtracts m: accuracy (r_w > r_l), margin (r_w - r_l), mean_reward.

    Raises ValueError if scale or centering is negative, or margin is missing.
    Use when annotators said how much better the chosen reply is.
    """
    require(scale >= 0, f"bradley_terry_margin: scale = {scale}: expected 0 (no margin) or more, such as 1.0")
    require(centering >= 0, f"bradley_terry_margin: centering = {centering}: expected 0 (off) or more, such as 0.01")
    (margin_B,) = needs(scored, "margin")
    chosen_B, rejected_B, margin_B = (
        jnp.where(scored.mask, x_B.astype(jnp.float32), 0.0)
        for x_B in (scored.chosen, scored.rejected, jax.lax.stop_gradient(margin_B))
    )
    value_B = -jax.nn.log_sigmoid(chosen_B - rejected_B - scale * margin_B)
    value_B += centering * jnp.square(chosen_B + rejected_B)
    metrics = pair_metrics(chosen_B, rejected_B, scored.mask)
    return Loss(value=value_B, weight=scored.mask.astype(jnp.float32), metrics=metrics)
