"""Direct preference optimisation."""

import jax

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight
from alignax.types import Loss, Pair


def dpo(pair: Pair, *, beta: Scalar = 0.1, label_smoothing: Scalar = 0.0) -> Loss:
    """L = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), mean over pairs, with e = label_smoothing and

        h = [log pi(y_w|x) - log ref(y_w|x)] - [log pi(y_l|x) - log ref(y_l|x)],

    log-probabilities *summed* over the response (Rafailov et al. 2023, equation 7). e > 0 is conservative DPO: labels
    are flipped with probability e (Mitchell 2023). value, weight: [B]; a pair counts if both sides have tokens.

    Metrics: rewards/chosen and rewards/rejected, the implicit rewards beta (log pi - log ref); rewards/margins, their
    difference; rewards/accuracies, how often it is positive (a tie is no success); logps/chosen and logps/rejected,
    sums over the response, not means per token.

    Raises ValueError if beta is not positive, label_smoothing not in [0, 0.5), or ref_logp is missing.
    Use when you have preference pairs and a reference: the default choice; smooth labels where annotators disagree.
    """
    require(beta > 0, f"dpo: beta = {beta}: expected a positive number, such as 0.1")
    require(
        (label_smoothing >= 0) & (label_smoothing < 0.5),
        f"dpo: label_smoothing = {label_smoothing}: expected a flip rate in [0, 0.5); at 0.5 a label tells nothing",
    )
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    margin_B = chosen_B - rejected_B
    kept_B, flipped_B = -jax.nn.log_sigmoid(margin_B), -jax.nn.log_sigmoid(-margin_B)
    value_B = (1 - label_smoothing) * kept_B + label_smoothing * flipped_B
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
