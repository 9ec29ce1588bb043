"""Noise contrastive alignment, for pairs."""

import jax

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight
from alignax.types import Loss, Pair


def nca(pair: Pair, *, beta: Scalar = 0.01) -> Loss:
    """L = -log sigmoid(beta r_w) - log sigmoid(-beta r_w) / 2 - log sigmoid(-beta r_l) / 2, mean over pairs.

    r = log pi(y|x) - log ref(y|x), summed: the pairwise NCA of Chen et al. 2024 (2402.05369), TRL's "nca_pair". Each
    reply is compared with the reference on its own, so the chosen one is held up (least loss at beta r_w = log 2); DPO
    knows only the difference and may lower both. value, weight: [B]. Default: the paper's.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta r.
    Raises ValueError if beta is not positive or ref_logp is missing.
    Use when DPO lowers the likelihood of chosen replies and that matters.
    """
    require(beta > 0, f"nca: beta = {beta}: expected a positive number, such as 0.01")
    chosen_B, rejected_B = (beta * ratio_B for ratio_B in log_ratios(pair))
    noise_B = -0.5 * (jax.nn.log_sigmoid(-chosen_B) + jax.nn.log_sigmoid(-rejected_B))
    value_B = -jax.nn.log_sigmoid(chosen_B) + noise_B
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
