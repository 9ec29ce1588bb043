"""The reward model's loss on paired preferences."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.comparison import pair_metrics
from alignax.types import Loss, Scored


def bradley_terry(scored: Scored, *, centering: Scalar = 0.0) -> Loss:
    """L = -log sigmoid(r_w - r_l) + centering (r_w + r_l)^2, mean over pairs.

    The first term is the Bradley-Terry likelihood (Ouyang et al. 2022); it knows rewards only up to a constant per
    prompt, which the second term pins near zero (Eisenstein et al. 2023, who take 0.01). TRL has it too, with
    `center_rewards_coefficient`. value, weight: [B].
    A tied pair (`tie`) counts as a win of its chosen side: mask it, or take `rao_kupper` or `davidson`.
    Metrics: accuracy (r_w > r_l; equal scores are no success), margin (r_w - r_l), mean_reward (over both sides).

    Raises ValueError if centering is negative.
    Use when you have pairs with a clear winner: the usual loss of a reward model.
    """
    require(centering >= 0, f"bradley_terry: centering = {centering}: expected 0 (off) or more, such as 0.01")
    chosen_B = jnp.where(scored.mask, scored.chosen.astype(jnp.float32), 0.0)
    rejected_B = jnp.where(scored.mask, scored.rejected.astype(jnp.float32), 0.0)
    value_B = -jax.nn.log_sigmoid(chosen_B - rejected_B) + centering * jnp.square(chosen_B + rejected_B)
    metrics = pair_metrics(chosen_B, rejected_B, scored.mask)
    return Loss(value=value_B, weight=scored.mask.astype(jnp.float32), metrics=metrics)
