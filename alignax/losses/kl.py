"""A KL penalty as a term of the loss."""

import jax
import jax.numpy as jnp

from alignax.ops.checks import needs
from alignax.ops.kl import check_placement, estimate, k2, k3, straight_through
from alignax.ops.policy import log_ratio
from alignax.ops.stable import exp_linear
from alignax.types import Loss, Rollout


def kl(rollout: Rollout, *, estimator: str = "k2", importance_weighted: bool = True) -> Loss:
    """L = mean_t rho_t k(log pi(y_t), log ref(y_t)), over all action tokens; the caller multiplies by its beta.

    With `importance_weighted` rho = pi / pi_old, a constant: the gradient is then that of KL(pi || ref) at each token
    for every estimator, however far the policy has moved since it sampled, and the estimator says which value is shown.
    TRL's `use_bias_correction_kl` on k3, which is on there too, has the same value and gradient.

    Without it rho = 1, and the gradient is right for the first update of a rollout only: 'k2' has that of
    KL(pi || ref); 'k3', as GRPO is defined (Shao et al. 2024), that of KL(ref || pi); 'k3+k2' shows the value of k3 and
    has the gradient of k2. See `ops.kl` (Schulman 2020).

    rho is the token's own ratio, whatever ratio the policy loss takes, as KL is a sum over tokens (TRL takes that of
    whole replies where its policy loss does); linear beyond e^20. The reference is a constant. value, weight: [B T].
    Metric: kl, the mean of rho k3, whichever estimator is chosen: unbiased where rho is not held at 1.

    Raises ValueError for an unknown estimator, for 'k1' (with the reason), or if logp or ref_logp is missing.
    Use when the KL penalty is a term of the loss and not of the reward; the online stage adds it by `kl_placement`.
    """
    check_placement(estimator, "loss")
    logp_BT, ref_logp_BT = needs(rollout, "logp", "ref_logp")
    logp_BT = jnp.where(rollout.mask, logp_BT.astype(jnp.float32), 0.0)
    ref_logp_BT = jnp.where(rollout.mask, jax.lax.stop_gradient(ref_logp_BT.astype(jnp.float32)), 0.0)
    value_BT, kl_BT = estimate(estimator, logp_BT, ref_logp_BT), k3(logp_BT, ref_logp_BT)
    if importance_weighted:
        rho_BT = jax.lax.stop_gradient(exp_linear(log_ratio(logp_BT, rollout.old_logp, rollout.mask)))
        value_BT = straight_through(rho_BT * value_BT, rho_BT * k2(logp_BT, ref_logp_BT))
        kl_BT = rho_BT * kl_BT
    weight_BT = rollout.mask.astype(jnp.float32)
    return Loss(value=value_BT, weight=weight_BT, metrics={"kl": (kl_BT, weight_BT)})
