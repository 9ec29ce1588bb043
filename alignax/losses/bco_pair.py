"""Binary classifier optimisation on pairs, without its shift."""

import jax

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight
from alignax.types import Loss, Pair


def bco_pair(pair: Pair, *, beta: Scalar = 0.01) -> Loss:
    """L = -log sigmoid(beta r_w) - log sigmoid(-beta r_l), mean over pairs, r = log pi(y|x) - log ref(y|x), summed.

    Logistic regression of "chosen" on the implicit reward of each side (Jung et al. 2024, 2404.04656, with the reward
    shift delta = 0), as TRL's "bco_pair"; `bco` has the shift. It bounds the DPO loss of the same beta from
    above. value, weight: [B]. Default: the paper's.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta r.
    Raises ValueError if beta is not positive or ref_logp is missing.
    Use when pairs should be learnt as single verdicts: chosen up and rejected down, each against the reference.
    """
    require(beta > 0, f"bco_pair: beta = {beta}: expected a positive number, such as 0.01")
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    value_B = -jax.nn.log_sigmoid(chosen_B) - jax.nn.log_sigmoid(-rejected_B)
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
