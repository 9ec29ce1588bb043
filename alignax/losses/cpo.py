"""Contrastive preference optimisation."""

import jax

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import mean_logp, pair_metrics, pair_weight, summed_logp
from alignax.types import Loss, Pair


def cpo(pair: Pair, *, beta: Scalar = 0.1, alpha: Scalar = 1.0, nll: str = "mean") -> Loss:
    """L = -log sigmoid(beta (log pi(y_w|x) - log pi(y_l|x))) - alpha n(y_w), mean over pairs.

    Xu et al. 2024 (2401.08417): DPO with a uniform reference, so none is run, and an NLL term. n is log pi(y_w) / |y_w|
    for nll = "mean" and log pi(y_w) for "sum", which is how the formula reads. TRL averages over all chosen tokens of
    the batch instead: the same where replies are equally long, or add `chosen_nll` to alpha = 0. value, weight: [B].
    Defaults: TRL's.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta log pi; nll_loss, -n.
    Raises ValueError if beta is not positive, alpha is negative, or nll is unknown.
    Use when there is no room for a reference model and chosen replies are worth imitating (translation).
    """
    require(beta > 0, f"cpo: beta = {beta}: expected a positive number, such as 0.1")
    require(alpha >= 0, f"cpo: alpha = {alpha}: expected 0 (no NLL term) or more, such as 1.0")
    require(nll in ("mean", "sum"), f"cpo: nll = {nll!r}: expected 'mean' or 'sum'")
    chosen_B, rejected_B = beta * summed_logp(pair.chosen), beta * summed_logp(pair.rejected)
    nll_B = -(mean_logp if nll == "mean" else summed_logp)(pair.chosen)
    value_B = -jax.nn.log_sigmoid(chosen_B - rejected_B) + alpha * nll_B
    weight_B = pair_weight(pair)
    metrics = pair_metrics(pair, chosen_B, rejected_B) | {"nll_loss": (nll_B, weight_B)}
    return Loss(value=value_B, weight=weight_B, metrics=metrics)
