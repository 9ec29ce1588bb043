"""From hidden states to logits: the one place where the output layer's product, soft cap and temperature are written.

The sampler, the learner's log-probabilities (`ops.logprobs`, chunk by chunk) and everything that looks at whole
distributions call it, so that none of them can differ from the others.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from alignax.ops.checks import Scalar


def logits(
    hidden: Float[Array, "*B D"], kernel: Float[Array, "D V"], *, softcap: float = 0.0, temperature: Scalar = 1.0
) -> Float[Array, "*B V"]:
    """Tempered logits c tanh(hidden @ kernel / c) / temperature, float32 whatever the inputs; c = softcap, 0: no cap.

    The soft cap keeps |logit| below c (Gemma 2, 2408.00118, section 2). The cap comes before the temperature: it is
    part of the model, whose distribution the temperature then flattens. Columns are what the kernel has: the caller
    cuts off the padding of the vocabulary.
    """
    plain = jnp.tensordot(hidden, kernel, axes=1, preferred_element_type=jnp.float32)
    return (softcap * jnp.tanh(plain / softcap) if softcap else plain) / temperature
