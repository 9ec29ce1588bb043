"""How far a sampler is from the learner, by the log-probabilities that both give to what it sampled."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax.ops.masked import masked_mean


def mismatch(
    learner_logp_BT: Float[Array, "B T"], sampler_logp_BT: Float[Array, "B T"], mask_BT: Bool[Array, "B T"]
) -> dict[str, Float[Array, ""]]:
    """Metrics under TRL's names: |difference| in nats, and the ratios r = exp(learner - sampler) as they are.

    All of them over action tokens, before any correction.
    """
    difference_BT = jnp.where(mask_BT, learner_logp_BT.astype(jnp.float32) - sampler_logp_BT.astype(jnp.float32), 0.0)
    ratio_BT = jnp.exp(difference_BT)
    reach = {"where": mask_BT, "initial": 0.0}
    least = jnp.min(ratio_BT, where=mask_BT, initial=jnp.inf)
    return {
        "sampling/sampling_logp_difference/mean": masked_mean(jnp.abs(difference_BT), mask_BT),
        "sampling/sampling_logp_difference/max": jnp.max(jnp.abs(difference_BT), **reach),
        "sampling/importance_sampling_ratio/min": jnp.where(mask_BT.any(), least, 0.0),
        "sampling/importance_sampling_ratio/mean": masked_mean(ratio_BT, mask_BT),
        "sampling/importance_sampling_ratio/max": jnp.max(ratio_BT, **reach),
    }
