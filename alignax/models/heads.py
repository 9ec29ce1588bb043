"""The scalar head of reward and value models."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from alignax.types import Params


def init_scalar(key: Array, dim: int) -> Params:
    """Weights N(0, 1/(D+1)) and bias 0 (Stiennon et al. 2020, 2009.01325; Huang et al. 2024, 2403.17031)."""
    return {"kernel": jax.random.normal(key, (dim,)) * (dim + 1) ** -0.5, "bias": jnp.zeros(())}


def scalar(params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """hidden . kernel + bias, in float32."""
    head = params["scalar"]
    return jnp.einsum("...d,d->...", hidden.astype(jnp.float32), head["kernel"]) + head["bias"]
