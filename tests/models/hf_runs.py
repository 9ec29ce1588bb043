"""Loads a checkpoint folder and computes what the tests compare: logits of the full forward pass, and of decoding."""

import dataclasses
from pathlib import Path

import hf_cases
import jax
import jax.numpy as jnp
import numpy as np
from tiny import one_more

from alignax import sharding
from alignax.models.decoder import decoder
from alignax.models.hf import config as hf_config
from alignax.models.hf.families import FAMILIES
from alignax.models.hf.weights import load_weights, plan
from alignax.ops.output import logits
from alignax.stages.parents import sharded_shapes

P = 5  # tokens of the prompt, in the test of decoding


def write(name: str, folder: Path, *, dtype=np.float32) -> Path:
    """A checkpoint folder of a case, made without PyTorch."""
    family, config = config_of(name)
    shapes = {path: leaf.shape for path, leaf in leaves_of(decoder(config)).items()}
    tensors = plan(FAMILIES[family.name], config, shapes)
    hf_cases.write(folder, name, {n: t.shape for n, t in tensors.items()}, dtype=dtype)
    return folder


def config_of(name: str):
    """(family, ModelConfig) of a case."""
    from transformers import AutoConfig

    case = AutoConfig.for_model(**hf_cases.CASES[name])
    family = FAMILIES[case.model_type]
    return family, hf_config.from_hf(family, case.to_dict())


def leaves_of(model) -> dict:
    """{path: shape} of a decoder's parameters."""
    tree = jax.eval_shape(model.init, jax.random.key(0))["decoder"]
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def load(folder: Path, *, fsdp: int = 1, **changes):
    """(model, params) of a folder, on the first `fsdp` devices."""
    family, theirs = hf_config.read_config(folder)
    config = dataclasses.replace(hf_config.from_hf(family, theirs), **changes)
    mesh = sharding.make_mesh({"data": 1, "fsdp": fsdp}, jax.devices()[:fsdp])
    model = decoder(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, load_weights(folder, family, config, sharded_shapes(shapes, mesh))


def logits_of(model, params, hidden) -> np.ndarray:
    """Logits of the real vocabulary, soft cap included."""
    kernel_DV = model.unembed(params)[:, : model.config.vocab_size]
    return np.asarray(logits(hidden, kernel_DV, softcap=model.config.logit_softcap))


def forward(model, params) -> np.ndarray:
    """Logits [B T V] of the inputs."""
    tokens, valid = map(jnp.asarray, hf_cases.inputs())
    return logits_of(model, params, jax.jit(model.apply)(params, tokens, valid))


def decoded(model, params) -> np.ndarray:
    """Logits [B T V] of the inputs, the last T - P read one by one from the cache; row 2 is padded on the right."""
    tokens, valid = map(jnp.asarray, hf_cases.inputs())

    @jax.jit
    def run(params):
        hidden_BPD, cache = model.prefill(params, tokens[:, :P], valid[:, :P], model.init_cache(*tokens.shape))
        layers = model.unstack(params)
        step = lambda cache, token_B: one_more(model, layers, token_B, cache)  # noqa: E731
        _, rest_TBD = jax.lax.scan(step, cache, tokens[:, P:].T)
        return jnp.concatenate([hidden_BPD, rest_TBD.swapaxes(0, 1)], axis=1)

    return logits_of(model, params, run(params))
