"""Group relative policy optimisation."""

import jax.numpy as jnp

from alignax.ops.checks import Scalar, needs
from alignax.ops.masked import masked_mean
from alignax.ops.policy import check_clip, clip_metrics, clipped, constant, drift_metrics, log_ratio
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


def grpo(rollout: Rollout, *, clip_low: Scalar = 0.2, clip_high: Scalar = 0.2) -> Loss:
    """L = -mean_i (1 / |y_i|) sum_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t).

    Shao et al. 2024 (arXiv 2402.03300), with A from `ops.advantages.group_standardise`; its penalty is `losses.kl` with
    estimator 'k3' and without importance weights, a term of its own (a token mean there, where the paper's KL is inside
    the sum over t: equal only for replies of one length). The *sequence mean* weighs a token by 1 / |y_i|: a long wrong
    reply is pushed less per token than a short one (Liu et al. 2025; see dr_grpo). |y_i| counts action tokens only.
    Clips are TRL's `epsilon` (0.2); TRL's trainer defaults to DAPO's token mean, and this is its loss_type "grpo",
    whose KL is the paper's in its place, with importance weights by default, and whose mean counts rows without action
    tokens too. value, weight: [B], rows with an action token. Advantages and old log-probabilities are constants.

    Metrics, token means: clip_ratio/low_mean, high_mean and region_mean, where the clip stops the gradient;
    policy/approxkl_avg, 0.5 (log rho)^2; policy/entropy_avg, nats; val/ratio, rho.

    Raises ValueError if a clip is not positive, or logp, advantage or entropy is missing.
    Use when the published GRPO is to be reproduced; dapo or dr_grpo are sounder starts for new work.
    """
    check_clip("grpo", clip_low, clip_high)
    logp_BT, advantage_BT, entropy_BT = needs(rollout, "logp", "advantage", "entropy")
    log_ratio_BT = log_ratio(logp_BT, rollout.old_logp, rollout.mask)
    advantage_BT = constant(advantage_BT, rollout.mask)
    ratio_BT = exp_linear(log_ratio_BT)
    objective_BT = clipped(ratio_BT, advantage_BT, clip_low, clip_high)
    value_B = -masked_mean(objective_BT, rollout.mask, axis=1)
    weight_B, weight_BT = jnp.any(rollout.mask, axis=1).astype(jnp.float32), rollout.mask.astype(jnp.float32)
    metrics = drift_metrics(log_ratio_BT, entropy_BT, weight_BT) | {"val/ratio": (ratio_BT, weight_BT)}
    metrics |= clip_metrics(ratio_BT, advantage_BT, clip_low, clip_high, weight_BT)
    return Loss(value=value_B, weight=weight_B, metrics=metrics)
