"""What is made of a score beside those of the reference's replies to the same prompt: (score, reference) -> score.

A reply of the reference without a score (nan) takes no part; a prompt of which none has one leaves its replies without.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from alignax.ops.checks import Scalar, require
from alignax.ops.masked import masked_mean


def preference(
    score_B: Float[Array, " B"], reference_BM: Float[Array, "B M"], *, scale: Scalar = 1.0
) -> Float[Array, " B"]:
    """mean_m sigmoid((r - r_ref_m) / scale): PAR (Fu et al. 2025, 2502.18770), bounded, steepest where r is r_ref.

    With a scale of 1 it is how probable a Bradley-Terry reward model holds it that the reply beats the reference's.
    Raises ValueError unless scale > 0.
    """
    require(scale > 0, f"preference: scale = {scale}: expected a positive number, such as 1.0")
    known_BM = jnp.isfinite(reference_BM)
    wins_BM = jax.nn.sigmoid((score_B[:, None] - jnp.where(known_BM, reference_BM, 0.0)) / scale)
    return _known(masked_mean(wins_BM, known_BM, axis=1), known_BM, score_B)


def centred(score_B: Float[Array, " B"], reference_BM: Float[Array, "B M"]) -> Float[Array, " B"]:
    """r - mean_m r_ref_m: the score without what is in the prompt."""
    known_BM = jnp.isfinite(reference_BM)
    return _known(score_B - masked_mean(reference_BM, known_BM, axis=1), known_BM, score_B)


def _known(
    shaped_B: Float[Array, " B"], known_BM: Bool[Array, "B M"], score_B: Float[Array, " B"]
) -> Float[Array, " B"]:
    return jnp.where(known_BM.any(axis=1) & jnp.isfinite(score_B), shaped_B, jnp.nan)
