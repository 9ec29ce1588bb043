"""An entropy bonus as a term of the loss."""

import jax.numpy as jnp

from alignax.ops.checks import needs
from alignax.types import Loss, Rollout


def entropy(rollout: Rollout) -> Loss:
    """L = -mean_t H(pi(. | x, y_<t)), nats, over the batch's action tokens; the caller multiplies by its coefficient.

    H is the entropy of the whole next-token distribution at the sampled prefix (Mnih et al. 2016, arXiv 1602.01783).
    Its gradient holds the prefixes fixed: it is not that of the entropy of whole replies, in which the choice of a
    prefix counts too. Zheng et al. 2023 (arXiv 2307.04964) find the
    coefficient very sensitive. value, weight: [B T].
    Metric: policy/entropy_avg, +H.

    Raises ValueError if entropy is missing.
    Use when the policy's entropy collapses and a small coefficient (1e-3 to 1e-2) is enough to hold it.
    """
    (entropy_BT,) = needs(rollout, "entropy")
    entropy_BT = jnp.where(rollout.mask, entropy_BT.astype(jnp.float32), 0.0)
    weight_BT = rollout.mask.astype(jnp.float32)
    return Loss(value=-entropy_BT, weight=weight_BT, metrics={"policy/entropy_avg": (entropy_BT, weight_BT)})
