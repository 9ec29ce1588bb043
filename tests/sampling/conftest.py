"""Models whose distributions are known by heart: what comes next is a row of a table."""

import jax
import jax.numpy as jnp
import pytest

from alignax.models.config import ModelConfig
from alignax.types import Model


def markov_model(width: int, on_decode=None) -> Model:
    """logits(next | last) = table[last], where the parameters are the table [V, V]; `on_decode` is called per step."""
    one_hot = lambda tokens: jax.nn.one_hot(tokens, width)  # noqa: E731

    def extend(table, tokens, valid, cache):
        if on_decode:
            jax.debug.callback(on_decode)
        return one_hot(tokens), cache

    return Model(
        config=ModelConfig(vocab_size=width, vocab_multiple=1),
        init=lambda key: jax.random.normal(key, (width, width)),
        apply=lambda table, tokens, valid: one_hot(tokens),
        hidden_states=lambda table, tokens, valid: one_hot(tokens)[None],
        init_cache=lambda batch, length: {},
        prefill=lambda table, tokens, valid, cache: (one_hot(tokens), cache),
        unstack=lambda table: table,
        extend=extend,
        unembed=lambda table: table,
        init_scalar=lambda key: None,
        scalar=lambda params, hidden: hidden[..., 0],
    )


@pytest.fixture(scope="session")
def markov():
    return markov_model


@pytest.fixture(scope="session")
def counting():
    """A table that counts: after token i comes i + 1 (mod 20) with probability 1 - 1e-10 or so."""
    return jnp.roll(jnp.eye(20) * 25.0, 1, axis=1)
