"""The scalar head of reward and value models, or one with a score for each of several attributes."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from alignax.types import Params


def init_scalar(key: Array, dim: int, attributes: int | None = None) -> Params:
    """Weights N(0, 1/(D+1)) and bias 0 (Stiennon et al. 2020, 2009.01325; Huang et al. 2024, 2403.17031).

    kernel [D] and bias [], or, with a number of attributes (1 too), kernel [D A] and bias [A].
    """
    shape = () if attributes is None else (attributes,)
    return {"kernel": jax.random.normal(key, (dim, *shape)) * (dim + 1) ** -0.5, "bias": jnp.zeros(shape)}


def scalar(params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "..."]:
    """hidden . kernel + bias, in float32: [*B], or [*B A] for a head of several attributes."""
    head = params["scalar"]
    form = "...d,d->..." if head["kernel"].ndim == 1 else "...d,da->...a"
    score = jnp.einsum(form, hidden.astype(jnp.float32), head["kernel"])
    return score + jnp.broadcast_to(head["bias"], score.shape)


def weighted(head: Params, weights: Float[Array, " A"]) -> Params:
    """The scalar head with the score sum_a weights_a score_a, of a head of A attributes: a sum of linear ones."""
    return {"kernel": head["kernel"] @ weights, "bias": head["bias"] @ weights}
