"""Direct preference optimisation."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.masked import masked_sum
from alignax.types import Loss, Pair


def dpo(pair: Pair, *, beta: Scalar = 0.1, label_smoothing: Scalar = 0.0) -> Loss:
    """L = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), mean over pairs, with e = label_smoothing and

        h = [log pi(y_w|x) - log ref(y_w|x)] - [log pi(y_l|x) - log ref(y_l|x)],

    log-probabilities *summed* over the response (Rafailov et al. 2023, equation 7). e > 0 is conservative DPO: labels
    are flipped with probability e (Mitchell 2023). value, weight: [B]; a pair counts if both sides have tokens.

    Metrics: rewards/chosen and rewards/rejected, the implicit rewards beta (log pi - log ref); rewards/margins, their
    difference; rewards/accuracies, how often it is positive (a tie is no success); logps/chosen and logps/rejected,
    sums over the response, not means per token.

    Raises ValueError if beta is not positive or label_smoothing not in [0, 0.5).
    Use when you have pairs and a reference: the default of offline alignment.
    """
    require(beta > 0, f"dpo: beta = {beta}: expected a positive number, such as 0.1")
    require(
        (label_smoothing >= 0) & (label_smoothing < 0.5),
        f"dpo: label_smoothing = {label_smoothing}: expected a flip rate in [0, 0.5); at 0.5 a label tells nothing",
    )
    chosen_B, rejected_B = (masked_sum(side.logp, side.mask, axis=1) for side in (pair.chosen, pair.rejected))
    ref_chosen_B, ref_rejected_B = (
        jax.lax.stop_gradient(masked_sum(side.ref_logp, side.mask, axis=1)) for side in (pair.chosen, pair.rejected)
    )
    reward_chosen_B = beta * (chosen_B - ref_chosen_B)
    reward_rejected_B = beta * (rejected_B - ref_rejected_B)
    margin_B = reward_chosen_B - reward_rejected_B
    kept_B, flipped_B = -jax.nn.log_sigmoid(margin_B), -jax.nn.log_sigmoid(-margin_B)
    value_B = (1 - label_smoothing) * kept_B + label_smoothing * flipped_B
    weight_B = (jnp.any(pair.chosen.mask, axis=1) & jnp.any(pair.rejected.mask, axis=1)).astype(jnp.float32)
    metrics = {
        "rewards/chosen": (reward_chosen_B, weight_B),
        "rewards/rejected": (reward_rejected_B, weight_B),
        "rewards/accuracies": ((margin_B > 0).astype(jnp.float32), weight_B),
        "rewards/margins": (margin_B, weight_B),
        "logps/chosen": (chosen_B, weight_B),
        "logps/rejected": (rejected_B, weight_B),
    }
    return Loss(value=value_B, weight=weight_B, metrics=metrics)
