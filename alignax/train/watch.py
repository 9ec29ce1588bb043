"""What is watched of every rollout, whatever it is learnt by: signs that a reward is being played, not served."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from alignax.ops.advantages import scorable
from alignax.ops.checks import needs
from alignax.ops.kl import estimate
from alignax.ops.masked import masked_mean, ratio
from alignax.ops.ngrams import distinct, hashed
from alignax.types import Rollout

RUN, REPEATED = 2, 3  # tokens of the runs that are compared between replies, and within one


def of_kl(rollout: Rollout) -> dict[str, Float[Array, ""]]:
    """objective/kl_k2, objective/kl_k3: the KL to the reference by the estimators that `objective/kl` (k1) is not, nats
    per reply."""
    (ref_logp_BT,) = needs(rollout, "ref_logp")
    mask_BT = rollout.mask & rollout.own[:, None]
    total = lambda x_BT: masked_mean(jnp.sum(x_BT, axis=1, where=mask_BT), rollout.own)  # noqa: E731
    return {f"objective/kl_{name}": total(estimate(name, rollout.old_logp, ref_logp_BT)) for name in ("k2", "k3")}


def of_replies(rollout: Rollout, group: int) -> dict[str, Float[Array, ""]]:
    """Metrics of the policy's own replies, `group` to each prompt.

    rewards/length_correlation: Pearson's, of score and tokens; 0 where one of them does not vary.
    completions/repeated: share of a reply's runs of 3 tokens that stood in it before.
    completions/distinct, completions/distinct_in_group: different runs of 2 tokens over all of them, in the whole batch
    and in the replies to one prompt (Li et al. 2016, "A Diversity-Promoting Objective Function", 1510.03055).
    """
    (score_B,), own_B = needs(rollout, "score"), rollout.own
    mask_BT = rollout.mask & own_B[:, None]
    tokens_B = rollout.mask.sum(1).astype(jnp.float32)
    metrics = {"rewards/length_correlation": correlation(score_B, tokens_B, own_B & scorable(score_B))}
    unlike_B, runs_B = distinct(hashed(rollout.tokens, mask_BT, REPEATED))
    metrics["completions/repeated"] = masked_mean(1.0 - ratio(unlike_B, runs_B), runs_B > 0)
    pairs_BR = hashed(rollout.tokens, mask_BT, RUN)
    P = len(pairs_BR) // group
    for name, rows in {"distinct": 1, "distinct_in_group": P}.items():
        unlike_G, runs_G = distinct(pairs_BR.reshape(rows, -1))
        metrics[f"completions/{name}"] = masked_mean(ratio(unlike_G, runs_G), runs_G > 0)
    return metrics


def correlation(x_B: Float[Array, " B"], y_B: Float[Array, " B"], known_B: Bool[Array, " B"]) -> Float[Array, ""]:
    """Pearson's correlation over the rows that are known; 0 where one of the two does not vary."""
    centred = [jnp.where(known_B, z - masked_mean(z, known_B), 0.0) for z in (jnp.where(known_B, x_B, 0.0), y_B)]
    below = jnp.sqrt(jnp.sum(jnp.square(centred[0])) * jnp.sum(jnp.square(centred[1])))
    return ratio(jnp.sum(centred[0] * centred[1]), below)
