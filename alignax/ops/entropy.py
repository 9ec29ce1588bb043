"""The coefficient of an entropy bonus that follows the entropy of the policy."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from alignax.ops.checks import Scalar, require


def adaptive_entropy(
    coef: Scalar, entropy: Scalar, *, target: Scalar, change: Scalar = 0.005, least: Scalar = 0.0, most: Scalar = 1.0
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(the coefficient that is applied, the next coefficient): a bonus that is on while the entropy is too low,

        applied = coef if entropy <= target, else 0
        next = coef + change if entropy <= target, else coef - change, within [least, most].

    Section 3.3 of Skywork-OR1 (He et al. 2025, arXiv 2505.22312), with its change; there the target was 0.2, and the
    coefficient 0 at the start. TRL's `use_adaptive_entropy`, whose bounds these are, applies it one update later.
    `entropy`: the mean over action tokens, nats, as `target`. An entropy that is not finite changes nothing.

    Raises ValueError if target or change is not positive, or the bounds are not 0 <= least <= most.
    """
    require(target > 0, f"adaptive_entropy: target = {target}: expected a positive number of nats per token, as 0.2")
    require(change > 0, f"adaptive_entropy: change = {change}: expected a positive step, such as 0.005")
    require(
        (least >= 0) & (least <= most),
        f"adaptive_entropy: least = {least}, most = {most}: expected 0 <= least <= most; less than 0 lowers entropy",
    )
    coef, entropy = jnp.asarray(coef, jnp.float32), jnp.asarray(entropy, jnp.float32)
    low = entropy <= target
    after = jnp.clip(coef + jnp.where(low, change, -jnp.asarray(change)), least, most)
    return jnp.where(low, coef, 0.0), jnp.where(jnp.isfinite(entropy), after, coef)
