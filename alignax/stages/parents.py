"""What a stage starts from: tokenizers, models and parameters of its parents, or fresh ones, on the mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from alignax import sharding
from alignax.checkpoint import check_content, content_hash, load_params
from alignax.config import ConfigError, Reader, bind, resolve
from alignax.data.tokenizer import load_tokenizer, template_hash, tokenizer_hash
from alignax.manifest import check_parent, read_manifest
from alignax.models.config import ModelConfig
from alignax.models.decoder import decoder
from alignax.stages.common import Stage
from alignax.types import Model, Params

POLICIES = ("imported", "sft", "online", "offline", "distill")  # stages whose parameters are a policy


def get_tokenizer(stage: Stage, own: str = "", parent: str = "policy") -> Any:
    """The parent's tokenizer, or `own`: 'module:function' builds one, anything else is a folder or a hub name."""
    if parent in stage.parents:
        return load_tokenizer(str(stage.parents[parent] / "tokenizer"))
    if not own:
        raise ConfigError("config.tokenizer is empty, and there is no parent to take one from (config.init_from)")
    return resolve(own, "", key="tokenizer")() if ":" in own else load_tokenizer(own)


def template_of(manifest: dict, tokenizer: Any) -> str:
    """The template that a checkpoint was trained with; of an imported one, the chat template that its tokenizer has."""
    return manifest["config"].get("template") or ("chat" if tokenizer.chat_template else "plain")


def build_model(preset: str, args: dict, compute: dict, vocab_size: int, mesh: Mesh) -> Model:
    """The model that a config names by preset and arguments."""
    function = resolve(preset, "alignax.models.presets", key="model")
    options = bind(function, args, key="model_args", given=("vocab_size",))
    return on_mesh(dataclasses.replace(function(vocab_size=vocab_size, **options), **compute), mesh)


def on_mesh(config: ModelConfig, mesh: Mesh) -> Model:
    """The model, told how activations and the vocabulary are cut: along the axis that the rules of `sharding` name."""
    return decoder(dataclasses.replace(config, vocab_shards=mesh.shape["fsdp"]), sharding.rows(mesh))


def new_or_loaded(stage: Stage, preset: str, args: dict, tokenizer: Any, mesh: Mesh) -> tuple[Model, Params]:
    """The parent policy, or fresh parameters of the preset where there is none; with both, they must agree."""
    cfg, compute = stage.cfg, compute_of(stage.cfg)
    model = build_model(preset, args, compute, len(tokenizer), mesh) if preset else None
    if "policy" in stage.parents:
        expected = model.config if model else None
        options = {"tokenizer": tokenizer, "template": cfg.template, "compute": compute, "mesh": mesh}
        return load_model(stage, "policy", POLICIES, expected=expected, **options)[:2]
    if model is None:
        raise ConfigError("config.model is empty, and there is no parent to take the architecture from")
    seed = jax.random.key(cfg.seed)
    return model, place(lambda: init_params(model, seed, scalar=False), mesh=mesh)


def load_model(
    stage: Stage, role: str, stages: tuple[str, ...], *, tokenizer: Any, template: str, compute: dict, mesh: Mesh,
    expected: ModelConfig | None = None,
) -> tuple[Model, Params, dict]:  # fmt: skip
    """Model, parameters (on the mesh) and manifest of a parent; refuses one that does not fit, saying what differs."""
    folder = stage.parents[role]
    manifest = read_manifest(folder)
    config = ModelConfig(**(manifest["architecture"] or {"vocab_size": 1}), **compute)
    manifest |= {"architecture": manifest["architecture"] and config.architecture()}  # fields that came later included
    check_parent(
        manifest,
        role=role,
        stage=stages,
        tokenizer_hash=tokenizer_hash(tokenizer),
        template_hash=template_hash(tokenizer, template),
        architecture=expected.architecture() if expected else None,
    )
    model = on_mesh(config, mesh)
    scalar, attributes = manifest["stage"] == "reward", len(rated_attributes(manifest)) or None
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0), scalar=scalar, attributes=attributes))
    params = load_params(folder / "params", sharded_shapes(shapes, mesh))
    check_content(folder, manifest, content_hash(params))
    return model, params, manifest


def rated_attributes(manifest: dict) -> list[str]:
    """The attributes that a reward model rates, in the order of its head; [] if it has a single score."""
    return (manifest["data"] or {}).get("attributes", [])


def init_params(model: Model, key: jax.Array, *, scalar: bool, attributes: int | None = None) -> Params:
    """Fresh parameters, with a scalar head if asked, or one for a number of attributes."""
    k_model, k_head = jax.random.split(key)
    return model.init(k_model) | ({"scalar": model.init_scalar(k_head, attributes)} if scalar else {})


def sharded_shapes(shapes: Any, mesh: Mesh) -> Any:
    """The shapes with the sharding that the rules give them."""
    place = lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)  # noqa: E731
    return jax.tree.map(place, shapes, sharding.shardings(shapes, mesh))


def place(build: Callable, *args: Any, mesh: Mesh) -> Any:
    """`build(*args)` under jit, every array of the result where the rules put it."""
    shapes = jax.eval_shape(build, *args)
    return jax.jit(build, out_shardings=sharding.shardings(shapes, mesh))(*args)


def get_mesh(cfg: Reader) -> Mesh:
    """The mesh of a config."""
    return sharding.make_mesh({"data": cfg.mesh.data, "fsdp": cfg.mesh.fsdp})


def compute_of(cfg: Reader) -> dict:
    """How activations are computed and kept: fields of ModelConfig that do not change the parameters."""
    return {"dtype": cfg.compute.dtype, "remat": cfg.compute.remat}
