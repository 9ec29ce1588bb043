"""A reference policy that moves with the policy: TR-DPO (Gorbatovski et al. 2024, 2404.09656). Pure functions."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from alignax.ops.checks import Scalar, require
from alignax.types import Params


def mix(reference: Params, params: Params, alpha: Scalar) -> Params:
    """alpha * params + (1 - alpha) * reference, leaf by leaf, in float32; each leaf keeps the reference's dtype.

    alpha = 1 copies the policy, 0 keeps the reference. Raises ValueError if alpha is not in [0, 1] or the trees differ.
    """
    require((alpha >= 0) & (alpha <= 1), f"mix: alpha = {alpha}: expected a share of the policy in [0, 1], such as 0.6")

    def leaf(old, new):
        mixed = alpha * new.astype(jnp.float32) + (1 - alpha) * old.astype(jnp.float32)
        return jax.lax.stop_gradient(mixed.astype(old.dtype))

    return jax.tree.map(leaf, reference, params)


def follow(
    reference: Params, params: Params, step: Int[Array, ""] | int, *, alpha: Scalar = 0.6, every: int = 512
) -> Params:
    """The reference after `step` updates: mixed with the policy at each multiple of `every` but 0, kept otherwise.

    Soft updates are alpha = 0.6 with a small `every`; hard ones alpha = 1 with a large one. Defaults: TRL's. Use it
    under jit, after the update and with the new step. Raises ValueError if every is less than 1, and as `mix` does.
    """
    require(every >= 1, f"follow: every = {every}: expected a number of updates, 1 or more, such as 512")
    due = (step % every == 0) & (step != 0)
    return jax.lax.cond(due, lambda: mix(reference, params, alpha), lambda: reference)
