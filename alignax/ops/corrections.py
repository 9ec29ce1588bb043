"""Corrections for a sampler that is not quite the learner: other kernels, another precision, older weights.

With the ratio r_t = exp(old_logp_t - sampler_logp_t) of the learner's probability of a sampled token to the sampler's,
each gives one weight per action token, zeros off the mask, without a gradient. To use one, multiply the advantage by
it: a weight of 0 or more commutes with the clip, min(w rho A, w clip(rho) A) = w min(rho A, clip(rho) A). A token of
weight 0 must not count in any denominator either: its mask goes (`kept`), as that of a row that is not there.

The product of r over a reply is unbiased and of large variance; r of each token alone leaves out how likely the learner
is to come to the token's prefix; what is cut off or left out is a bias that buys a smaller variance.

Reference:
  Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training": truncated, per token.
  Liu et al. 2025, "When speed kills stability": per sequence, masked, and by the geometric mean.
  IcePop (Ling team 2025, arXiv 2510.18855, 3.2): masked, per token. verl's `rollout_corr` has them all.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax.ops.checks import Scalar, require
from alignax.ops.masked import masked_mean, masked_sum


def truncated_weights(
    old_logp_BT: Float[Array, "B T"],
    sampler_logp_BT: Float[Array, "B T"],
    mask_BT: Bool[Array, "B T"],
    *,
    level: str = "token",
    cap: Scalar = 2.0,
) -> Float[Array, "B T"]:
    """min(r, cap).

    'token': r of each token alone. 'sequence': the product over the row's action tokens, at each of them: unbiased
    below the cap, and of far larger variance. cap = 2 is verl's and open-instruct's (TRL: 3, and it masks whole
    sequences); inf gives the plain weights.

    Raises ValueError if level is unknown or cap not positive.
    """
    require(cap > 0, f"truncated_weights: cap = {cap}: expected a positive number, such as 2.0")
    log_r_BT = _log_ratio("truncated_weights", old_logp_BT, sampler_logp_BT, mask_BT, level)
    weight_BT = jnp.exp(jnp.minimum(log_r_BT, jnp.log(jnp.asarray(cap, jnp.float32))))  # the cap before the exponential
    return jax.lax.stop_gradient(jnp.where(mask_BT, weight_BT, 0.0))


def masked_weights(
    old_logp_BT: Float[Array, "B T"],
    sampler_logp_BT: Float[Array, "B T"],
    mask_BT: Bool[Array, "B T"],
    *,
    level: str = "token",
    cap: Scalar = 2.0,
) -> Float[Array, "B T"]:
    """r where 1 / cap <= r <= cap, else 0: what is far off is not learnt from at all.

    `level` as in `truncated_weights`: of each token (IcePop, which takes 0.5 and 5), or of whole replies, of which one
    that is far off goes with all its tokens (TRL's sequence_mask, above 3 alone).

    Raises ValueError if level is unknown or cap less than 1.
    """
    require(cap >= 1, f"masked_weights: cap = {cap}: expected 1 or more, such as 2.0; ratios in [1 / cap, cap] stay")
    log_r_BT = _log_ratio("masked_weights", old_logp_BT, sampler_logp_BT, mask_BT, level)
    near_BT = mask_BT & (jnp.abs(log_r_BT) <= jnp.log(jnp.asarray(cap, jnp.float32)))
    return jax.lax.stop_gradient(jnp.where(near_BT, jnp.exp(jnp.where(near_BT, log_r_BT, 0.0)), 0.0))


def geometric_rejection(
    old_logp_BT: Float[Array, "B T"],
    sampler_logp_BT: Float[Array, "B T"],
    mask_BT: Bool[Array, "B T"],
    *,
    cap: Scalar = 1.01,
    token_cap: Scalar | None = None,
) -> Float[Array, "B T"]:
    """Replies whose ratio is, in the geometric mean exp(mean_t log r_t), in [1 / cap, cap]; all others have weight 0.

    The mean does not grow with the length, as the product does, which leaves no long reply. What stays has the weight
    1, or min(r_t, token_cap) where there is a `token_cap`.

    Raises ValueError if cap is less than 1 or token_cap not positive.
    """
    require(cap >= 1, f"geometric_rejection: cap = {cap}: expected 1 or more, such as 1.01")
    log_r_BT = _log_ratio("geometric_rejection", old_logp_BT, sampler_logp_BT, mask_BT, "token")
    off_B = jnp.abs(masked_mean(log_r_BT, mask_BT, axis=1))
    keep_BT = mask_BT & (off_B <= jnp.log(jnp.asarray(cap, jnp.float32)))[:, None]
    weight_BT = jnp.ones(mask_BT.shape, jnp.float32)
    if token_cap is not None:
        require(token_cap > 0, f"geometric_rejection: token_cap = {token_cap}: expected a positive number, or None")
        weight_BT = jnp.exp(jnp.minimum(log_r_BT, jnp.log(jnp.asarray(token_cap, jnp.float32))))
    return jax.lax.stop_gradient(jnp.where(keep_BT, weight_BT, 0.0))


def _log_ratio(name, old_logp_BT, sampler_logp_BT, mask_BT, level):
    """log r of each token, or their sum over the row at each of its tokens; 0 off the mask, whatever stands there."""
    require(level in ("token", "sequence"), f"{name}: level = {level!r}: expected 'token' or 'sequence'")
    log_r_BT = jnp.where(mask_BT, old_logp_BT.astype(jnp.float32) - sampler_logp_BT.astype(jnp.float32), 0.0)
    if level == "token":
        return log_r_BT
    return jnp.broadcast_to(masked_sum(log_r_BT, mask_BT, axis=1)[:, None], log_r_BT.shape)
