"""DPO under other divergences than the reverse KL."""

import jax

from alignax.ops.checks import Scalar, require
from alignax.ops.preference import log_ratios, pair_metrics, pair_weight, power_reward
from alignax.types import Loss, Pair


def f_dpo(pair: Pair, *, beta: Scalar = 0.1, divergence: str = "alpha", alpha: Scalar = 0.5) -> Loss:
    """L = -log sigmoid(beta (f'(u_w) - f'(u_l))), mean over pairs, u = pi(y|x) / ref(y|x) of the whole reply.

    f-DPO (Wang et al. 2023, 2309.16240). f' is, up to constants that cancel: "reverse_kl" log u (DPO itself);
    "forward_kl" -1 / u; "js" log(u / (1 + u)); "alpha" (1 - u^-alpha) / alpha, between the reverse KL at alpha = 0 and
    the forward KL at 1. TRL counts its coefficient the other way round: 1 - alpha. Where u^-alpha is beyond e^20 it
    goes on linearly in log u (TRL clamps, which ends the gradient). value, weight: [B].

    Metrics: those of `ops.preference.pair_metrics`, for rewards beta f'(u), the implicit rewards (TRL logs beta log u).
    Raises ValueError if beta is not positive, divergence is unknown, alpha is not in [0, 1] or is set beside a
    divergence that does not read it, or ref_logp is missing.
    Use when the policy should stay closer to all of the reference (forward KL, JS) and keep its diversity.
    """
    options = ("reverse_kl", "forward_kl", "js", "alpha")
    require(beta > 0, f"f_dpo: beta = {beta}: expected a positive number, such as 0.1")
    require(divergence in options, f"f_dpo: divergence = {divergence!r}: expected one of {', '.join(options)}")
    require((alpha >= 0) & (alpha <= 1), f"f_dpo: alpha = {alpha}: expected a number in [0, 1], such as 0.5")
    unread = f"f_dpo: alpha = {alpha}: only divergence = 'alpha' reads it, not {divergence!r}; leave it out"
    require((divergence == "alpha") | (alpha == 0.5), unread)
    scores = {
        "reverse_kl": lambda log_u_B: log_u_B,
        "forward_kl": lambda log_u_B: power_reward(log_u_B, 1.0),
        "js": jax.nn.log_sigmoid,
        "alpha": lambda log_u_B: power_reward(log_u_B, alpha),
    }
    chosen_B, rejected_B = (beta * scores[divergence](log_u_B) for log_u_B in log_ratios(pair))
    value_B = -jax.nn.log_sigmoid(chosen_B - rejected_B)
    return Loss(value=value_B, weight=pair_weight(pair), metrics=pair_metrics(pair, chosen_B, rejected_B))
