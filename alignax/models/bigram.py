"""The smallest model there is: the next token depends on the last one alone. For tests, and for trials on shapes."""

import jax
import jax.numpy as jnp
from jax import Array

from alignax.models.config import ModelConfig
from alignax.models.heads import init_scalar, scalar
from alignax.types import Layout, Model, Params


def bigram(vocab_size: int, dim: int = 4) -> Model:
    """h_t = E[y_t] and logits h_t U, in all that the samplers and losses ask of a model; its cache is empty."""
    config = ModelConfig(vocab_size, dim=dim, vocab_multiple=1, tie_embeddings=False)

    def init(key: Array) -> Params:
        embed, unembed = (jax.random.normal(k, (vocab_size, dim)) for k in jax.random.split(key))
        return {"decoder": {"embed": embed, "unembed": unembed.T}}

    def apply(params: Params, tokens: Array, valid: Array | Layout) -> Array:
        del valid
        return params["decoder"]["embed"][tokens]

    return Model(
        config=config,
        init=init,
        apply=apply,
        hidden_states=lambda params, tokens, valid: apply(params, tokens, valid)[None],
        init_cache=lambda batch, length: (),
        prefill=lambda params, tokens, valid, cache: (apply(params, tokens, valid), cache),
        unstack=lambda params: params,
        extend=lambda params, tokens, valid, cache: (apply(params, tokens, valid), cache),
        unembed=lambda params: params["decoder"]["unembed"],
        init_scalar=lambda key, attributes=None: init_scalar(key, dim, attributes),
        scalar=scalar,
    )


def shapes(model: Model) -> Params:
    """The shapes of its parameters, with a scalar head."""
    build = lambda key: model.init(key) | {"scalar": model.init_scalar(key)}  # noqa: E731
    return jax.eval_shape(build, jax.random.key(0))


def prompts(rows: int, length: int = 2) -> dict:
    """The shapes of a batch of prompts."""
    shape = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    return {
        "tokens": shape,
        "valid": jax.ShapeDtypeStruct(shape.shape, bool),
        "row": jax.ShapeDtypeStruct((rows,), jnp.int32),
    }
