"""Identity preference optimisation."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight, per_token
from alignax.types import Loss, Pair


def ipo(pair: Pair, *, beta: Scalar = 0.1, aggregation: str = "sum") -> Loss:
    """L = (h - 1 / (2 beta))^2, mean over pairs (Azar et al. 2023, 2310.12036, equation 17, whose tau is beta here).

    h = r_w - r_l with r = log pi(y|x) - log ref(y|x). `aggregation` "sum" adds r over the tokens: the paper's formula,
    and OpenRLHF; "mean" divides it by the length of its reply: TRL and HALOs, after asking the authors. The two ask for
    margins in different units (nats, nats per token), so a beta does not carry over. value, weight: [B].

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta r (r as aggregated; TRL logs the sum).
    Raises ValueError if beta is not positive, aggregation is unknown, or ref_logp is missing.
    Use when preferences are near deterministic, where DPO would push margins without end.
    """
    require(beta > 0, f"ipo: beta = {beta}: expected a positive number, such as 0.1")
    require(aggregation in ("sum", "mean"), f"ipo: aggregation = {aggregation!r}: expected 'sum' or 'mean'")
    chosen_B, rejected_B = log_ratios(pair)
    if aggregation == "mean":
        chosen_B, rejected_B = per_token(pair, chosen_B, rejected_B)
    value_B = jnp.square(chosen_B - rejected_B - 1.0 / (2.0 * beta))
    metrics = pair_metrics(pair, beta * chosen_B, beta * rejected_B)
    return Loss(value=value_B, weight=pair_weight(pair), metrics=metrics)
