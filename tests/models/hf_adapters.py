"""Adapters on the checkpoints of hf_cases.py: random ones of ours, and their way out and in."""

from pathlib import Path

import hf_runs
import jax
import jax.numpy as jnp
import numpy as np

from alignax import lora
from alignax.models.decoder import decoder
from alignax.models.hf.peft_in import load_adapter, read_adapter
from alignax.models.hf.peft_out import save_adapter


def fresh(params, *, seed: int = 0, rank: int = 2, **settings):
    """An adapter with random values in every leaf but the scale."""
    rng = np.random.default_rng(seed)
    tree = jax.device_get(lora.init(jax.random.key(seed), params, rank=rank, **settings))
    noise = lambda path, x: x if path[-1].key == "scale" else x + 0.2 * rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
    return jax.tree_util.tree_map_with_path(noise, tree)


def base(name: str):
    """(model, random parameters) of a case, without its checkpoint."""
    model, rng = decoder(hf_runs.config_of(name)[1]), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.2, x.dtype), shapes)


def load(folder: Path, name: str, model):
    """{"lora"} and, of a reward model, {"scalar"} of an adapter folder, for the model of a case."""
    layers = jax.eval_shape(model.init, jax.random.key(0))["decoder"]["layers"]
    kernels = {name: x["kernel"].shape for name, x in layers.items() if "kernel" in x}
    return load_adapter(folder, read_adapter(folder), hf_runs.config_of(name)[0], model.config, kernels)


def save(folder: Path, name: str, model, params, *, rslora: bool = False) -> Path:
    """Writes the adapter of a tree; returns its folder."""
    folder.mkdir()
    said, family = {"base_model_name_or_path": name}, hf_runs.config_of(name)[0]
    save_adapter(folder, family, model.config, params, rslora=rslora, dtype="float32", note={}, said=said)
    return folder
