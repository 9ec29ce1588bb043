"""Odds ratio preference optimisation: supervised learning and preferences in one stage."""

import jax

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_odds, mean_logp, pair_metrics, pair_weight
from alignax.types import Loss, Pair


def orpo(pair: Pair, *, beta: Scalar = 0.1) -> Loss:
    """L = -m_w - beta log sigmoid(log odds(m_w) - log odds(m_l)), mean over pairs, m = log pi(y|x) / |y|,

    odds = p / (1 - p) of p = exp(m), the geometric mean of the token probabilities (Hong et al. 2024, 2403.07691; beta
    is their lambda). The first term is the NLL per token of each chosen reply; TRL takes it over all tokens of the
    batch, prompts included. p counts as 1 - 1e-6 at most. value, weight: [B]. Default: theirs for Mistral.

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta m; nll_loss, -m_w; log_odds_chosen, the difference
    of log odds; log_odds_ratio, its log sigmoid. Raises ValueError if beta is not positive.
    Use when you start from a pretrained model and want one stage without a reference.
    """
    require(beta > 0, f"orpo: beta = {beta}: expected a positive number, such as 0.1")
    chosen_B, rejected_B = mean_logp(pair.chosen), mean_logp(pair.rejected)
    log_odds_B = log_odds(chosen_B) - log_odds(rejected_B)
    log_ratio_B = jax.nn.log_sigmoid(log_odds_B)
    weight_B = pair_weight(pair)
    metrics = pair_metrics(pair, beta * chosen_B, beta * rejected_B)
    metrics |= {
        "nll_loss": (-chosen_B, weight_B),
        "log_odds_chosen": (log_odds_B, weight_B),
        "log_odds_ratio": (log_ratio_B, weight_B),
    }
    return Loss(value=-chosen_B - beta * log_ratio_B, weight=weight_B, metrics=metrics)
