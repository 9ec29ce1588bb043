"""The decoder on the parameters and prompts of a Llama whose logits are known."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))

import torch_llama  # noqa: E402

from alignax.models.config import ModelConfig  # noqa: E402
from alignax.models.decoder import decoder  # noqa: E402


def compare(params, tokens, valid, want):
    """Logits at the real positions of every row, left padding included, to 1e-4."""
    model = decoder(ModelConfig(**torch_llama.SHAPE, tie_embeddings="unembed" not in params))
    tree = jax.tree.map(jnp.asarray, torch_llama.tree_of(params))
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, jax.eval_shape(model.init, jax.random.key(0)))
    hidden = jax.jit(model.apply)(tree, jnp.asarray(tokens), jnp.asarray(valid))
    logits = np.asarray(hidden @ model.unembed(tree))[..., : want.shape[-1]]
    np.testing.assert_allclose(logits[valid], want[valid], atol=1e-4)
    assert want[valid].std() > 0.1
