"""A policy gradient towards a Nash equilibrium of preferences."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, declares, needs, require
from alignax.ops.masked import masked_mean, masked_sum
from alignax.ops.policy import constant
from alignax.types import Loss, Rollout


@declares(online_needs_advantage="win_probability", own_kl=True)
def nash_md(rollout: Rollout, *, tau: Scalar = 0.1) -> Loss:
    """L = mean_i [-(P_i - 1/2) log pi(y_i) + (tau / 2) (log pi(y_i) - log ref(y_i))^2], Munos et al. 2023, 2312.00886.

    Its gradient is that of Nash-MD-PG, -(P_i - 1/2 - tau log(pi(y_i) / ref(y_i))) grad log pi(y_i), without a held
    factor: the square is the k2 estimate of `ops.kl` over whole replies. P_i = P(y_i > y') is the preference over an
    opponent y' sampled from the geometric mixture pi^(1 - b) ref^b. The record holds P_i - 1/2, in [-1/2, 1/2], as
    `advantage` at every action token of row i (`ops.advantages.spread`; the row's mean is read); sampling the mixture
    is the rollout's task. Log-probabilities are summed over action tokens. value, weight: [B], rows with such a token.

    tau = 0.1 is TRL's `beta`. TRL (1.5; dropped since) weighs each token's gradient by the log-ratio of that token
    alone, which leaves out what a token does to the KL of those after it; here, as in the paper, all tokens share that
    of the whole reply. For replies of one token, or tau = 0, the gradients are equal.

    Metrics, means over replies: rewards/probabilities, P; objective/kl, log pi - log ref, summed (k1).

    Raises ValueError if tau is negative, or logp, ref_logp or advantage is missing.
    Use when preferences may be intransitive, so that no reward model explains them, and a judge can be asked online.
    """
    require(tau >= 0, f"nash_md: tau = {tau}: expected 0 (no penalty) or more, such as 0.1")
    logp_BT, ref_logp_BT, advantage_BT = needs(rollout, "logp", "ref_logp", "advantage")
    mask_BT = rollout.mask
    logp_B = masked_sum(logp_BT, mask_BT, axis=1)
    log_ratio_B = logp_B - masked_sum(constant(ref_logp_BT, mask_BT), mask_BT, axis=1)
    advantage_B = masked_mean(constant(advantage_BT, mask_BT), mask_BT, axis=1)
    weight_B = jnp.any(mask_BT, axis=1).astype(jnp.float32)
    metrics = {"rewards/probabilities": (advantage_B + 0.5, weight_B), "objective/kl": (log_ratio_B, weight_B)}
    value_B = -advantage_B * logp_B + 0.5 * tau * jnp.square(log_ratio_B)
    return Loss(value=value_B, weight=weight_B, metrics=metrics)
