"""A policy of a folder in Hugging Face's form, for the benchmarks of the sampler: without a stage, on one device."""

import jax

from alignax import sharding
from alignax.models.decoder import decoder
from alignax.models.hf.config import from_hf, read_config
from alignax.models.hf.weights import load_weights
from alignax.stages.parents import sharded_shapes
from alignax.types import Model, Params


def load(folder: str) -> tuple[Model, Params]:
    """(model in float32, its parameters)."""
    family, hf_config = read_config(folder)
    model = decoder(from_hf(family, hf_config))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    targets = sharded_shapes(shapes, sharding.make_mesh({"data": 1, "fsdp": 1}))
    return model, load_weights(folder, family, model.config, targets)
