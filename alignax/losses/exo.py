"""Efficient exact optimisation, for pairs."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight
from alignax.types import Loss, Pair


def exo(pair: Pair, *, beta: Scalar = 0.1, label_smoothing: Scalar = 1e-3) -> Loss:
    """L = KL((p, 1 - p) || (1 - e, e)), mean over pairs, p = sigmoid(beta h), e = label_smoothing, h as in `dpo`.

    EXO-pref (Ji et al. 2024, 2402.00856; TRL cites equation 16). `dpo` with smoothing e is the KL in the other
    direction, up to a constant. The gradient by beta h is p (1 - p) (beta h - log((1 - e) / e)), so it fades for pairs
    that are lost by far; the least loss is at p = 1 - e. value, weight: [B]. Defaults: TRL's beta and the e it advises
    (the authors' code sets log e = -10).

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta (log pi - log ref).
    Raises ValueError if beta is not positive, label_smoothing not in (0, 0.5), or ref_logp is missing.
    Use when the policy should seek the mode of the preferred replies, as RL with a KL penalty does.
    """
    require(beta > 0, f"exo: beta = {beta}: expected a positive number, such as 0.1")
    require(
        (label_smoothing > 0) & (label_smoothing < 0.5),
        f"exo: label_smoothing = {label_smoothing}: expected a rate in (0, 0.5), such as 1e-3; at 0 the KL is infinite",
    )
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    margin_B = chosen_B - rejected_B
    log_e, log_rest = jnp.log(jnp.float32(label_smoothing)), jnp.log1p(-jnp.float32(label_smoothing))
    win_B = jax.nn.sigmoid(margin_B) * (jax.nn.log_sigmoid(margin_B) - log_rest)
    lose_B = jax.nn.sigmoid(-margin_B) * (jax.nn.log_sigmoid(-margin_B) - log_e)
    return Loss(value=win_B + lose_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
