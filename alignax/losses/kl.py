"""A KL penalty as a term of the loss."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import needs
from alignax.ops.kl import check_placement, estimate, k3
from alignax.types import Loss, Rollout


def kl(rollout: Rollout, *, estimator: str = "k2") -> Loss:
    """L = mean_t k(log pi(y_t), log ref(y_t)), over all action tokens of the batch; the caller multiplies by its beta.

    'k2' has the gradient of KL(pi || ref) when the tokens are sampled from pi; 'k3', GRPO's choice, has that of
    KL(ref || pi); 'k3+k2' shows the value of k3 and has the gradient of k2. See `ops.kl` (Schulman 2020; Shao et al.
    2024 for GRPO). The reference is a constant. value, weight: [B T].
    Metric: kl, the mean of k3 whichever estimator is differentiated: unbiased on-policy and never negative.

    Raises ValueError for an unknown estimator, for 'k1' (with the reason), or if logp or ref_logp is missing.
    Use when the KL penalty is a term of the loss and not of the reward; the online stage adds it by `kl_placement`.
    """
    check_placement(estimator, "loss")
    logp_BT, ref_logp_BT = needs(rollout, "logp", "ref_logp")
    logp_BT = jnp.where(rollout.mask, logp_BT.astype(jnp.float32), 0.0)
    ref_logp_BT = jnp.where(rollout.mask, jax.lax.stop_gradient(ref_logp_BT.astype(jnp.float32)), 0.0)
    weight_BT = rollout.mask.astype(jnp.float32)
    metrics = {"kl": (k3(logp_BT, ref_logp_BT), weight_BT)}
    return Loss(value=estimate(estimator, logp_BT, ref_logp_BT), weight=weight_BT, metrics=metrics)
