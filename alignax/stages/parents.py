"""What a stage starts from: tokenizers, models and parameters of its parents, or fresh ones, on the mesh."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from alignax import lora, sharding
from alignax.bound import Bound
from alignax.checkpoint import check_content, content_hash, load_params
from alignax.config import ConfigError, bind, resolve
from alignax.data.tokenizer import load_tokenizer, template_hash, tokenizer_hash, vocabulary
from alignax.manifest import CheckpointError, check_parent, read_manifest
from alignax.models.config import ModelConfig
from alignax.models.decoder import decoder
from alignax.rewards.model import check_weights, folded
from alignax.stages.folder import Stage
from alignax.stages.lengths import check_context
from alignax.stages.plans import REWARD, Parent
from alignax.types import Model, Params


def get_tokenizer(stage: Stage, own: str = "", parent: str = "policy") -> Any:
    """The parent's tokenizer, or `own`, by its name."""
    if parent in stage.parents:
        return load_tokenizer(str(stage.parents[parent] / "tokenizer"))
    if not own:
        raise ConfigError("config.tokenizer is empty, and there is no parent to take one from (config.init_from)")
    return named_tokenizer(own)


def named_tokenizer(name: str) -> Any:
    """'module:function' builds one, anything else is a folder or a hub name."""
    return resolve(name, "", key="tokenizer")() if ":" in name else load_tokenizer(name)


def template_of(manifest: dict, tokenizer: Any) -> str:
    """The template that a checkpoint was trained with; of an imported one, the chat template that its tokenizer has."""
    return manifest["config"].get("template") or ("chat" if tokenizer.chat_template else "plain")


def build_model(preset: Bound, compute: Mapping, vocab_size: int, mesh: Mesh) -> Model:
    """The model of a preset."""
    return on_mesh(dataclasses.replace(preset(vocab_size=vocab_size), **compute), mesh)


def on_mesh(config: ModelConfig, mesh: Mesh) -> Model:
    """The model, told how activations and the vocabulary are cut: along the axes that the rules of `sharding` name.

    Raises ConfigError where devices that share the width of layers would have parts of a head.
    """
    if config.heads % (parts := mesh.shape.get("tensor", 1)):
        fits = ", ".join(str(n) for n in range(1, config.heads + 1) if config.heads % n == 0 and mesh.size % n == 0)
        raise ConfigError(
            f"config.mesh.tensor = {parts}: the model has {config.heads} heads, which do not divide over so many "
            f"devices; expected one of {fits}"
        )
    config = dataclasses.replace(config, vocab_shards=sharding.parts(mesh, sharding.WIDTH))
    # parts of heads, and the sorted rows of experts, would be exchanged for every token; on CPU devices an exchange
    # waits for all of them, and some have nothing more to write
    apart = config.kv_heads % parts or config.experts
    shared = sharding.by_device(mesh) if apart else sharding.by_rows(mesh)
    cut = {"by_device": sharding.by_device(mesh), "by_rows": shared}
    return decoder(config, sharding.rows(mesh), **cut, device=mesh.devices.flat[0])


def new_or_loaded(
    stage: Stage, tokenizer: Any, mesh: Mesh, *, preset: Bound | None = None, adapted: bool = False,
    bases: dict[str, Params] | None = None,
) -> tuple[Model, Params]:  # fmt: skip
    """The parent policy, or fresh parameters of the preset where there is none; with both, they must agree.

    `adapted`, `bases`: see `load_model`.
    """
    plan = stage.plan
    model = build_model(preset, plan.compute, vocabulary(tokenizer), mesh) if preset else None
    if "policy" in stage.parents:
        expected = model.config if model else None
        return load_model(stage, "policy", tokenizer, mesh, expected=expected, adapted=adapted, bases=bases)[:2]
    if model is None:
        raise ConfigError("config.model is empty, and there is no parent to take the architecture from")
    check_context(model.config, stage.config, "policy", Parent("init_from"))
    seed = jax.random.key(plan.seed)
    return model, place(lambda: init_params(model, seed, scalar=False), mesh=mesh)


def reference_of(
    stage: Stage, start: Params, model: Model, tokenizer: Any, mesh: Mesh, bases: dict[str, Params] | None = None
) -> Params:
    """The reference policy: that of `reference_from`, of the policy's architecture; without one, the policy's start."""
    if "reference" not in stage.parents:
        return start
    return load_model(stage, "reference", tokenizer, mesh, expected=model.config, bases=bases)[1]


def load_model(
    stage: Stage, role: str, tokenizer: Any, mesh: Mesh, *, expected: ModelConfig | None = None, adapted: bool = False,
    bases: dict[str, Params] | None = None,
) -> tuple[Model, Params, dict]:  # fmt: skip
    """Model, parameters (on the mesh) and manifest of a parent; refuses one that does not fit, saying what differs.

    An adapter is worked into its base, unless `adapted`: then the tree has both. It has both with `bases` too, {content
    hash: whole parameters}: what is there is not loaded again and what is loaded is put there, so that roles on one
    content have one decoder.
    """
    folder, template = stage.parents[role], getattr(stage.plan, "template", None)  # of a stage that reads texts
    manifest = read_manifest(folder)
    config = ModelConfig(**(manifest["architecture"] or {"vocab_size": 1}), **stage.plan.compute)
    manifest |= {"architecture": manifest["architecture"] and config.architecture()}  # fields that came later included
    check_parent(
        manifest,
        role=role,
        tokenizer_hash=tokenizer_hash(tokenizer),
        template_hash=template_hash(tokenizer, template) if template else None,
        architecture=expected.architecture() if expected else None,
    )
    model = on_mesh(config, mesh)
    params = load_tree(folder, manifest, model, mesh, bases)
    return model, params if adapted or bases is not None else lora.merge(params), manifest


def load_reward(
    stage: Stage, role: str, weights: Mapping[str, Any], tokenizer: Any, mesh: Mesh, *, key: str,
    bases: dict[str, Params] | None = None,
) -> tuple[Model, Params]:  # fmt: skip
    """Model and parameters of a reward model with one score.

    The head of one that rates attributes is folded into the scalar head of sum_a weights_a score_a; of one with several
    heads, where nothing says their weights, into their mean. A process reward model scores a reply by its verdict at
    the last token, which for a whole reply is that on the last step. `bases`: see `load_model`. Raises ConfigError for
    `weights`, the config's `key`, that do not fit the model.
    """
    folder = stage.parents[role]
    manifest = read_manifest(folder)
    known, imported = rated_attributes(manifest), manifest["config"]["stage"] == "imported"
    if heads := (manifest["data"] or {}).get("heads"):
        weights = dict.fromkeys(known, 1.0 / heads) | dict(weights)
    check_weights(known, weights, key=key, folder=folder, imported=imported)
    model, params, _ = load_model(stage, role, tokenizer, mesh, bases=bases)
    if not known:
        return model, params
    head = place(lambda scalar: folded({"scalar": scalar}, known, weights)["scalar"], params["scalar"], mesh=mesh)
    return model, params | {"scalar": head}


def load_tree(folder: Path, manifest: dict, model: Model, mesh: Mesh, bases: dict[str, Params] | None = None) -> Params:
    """The parameters of a checkpoint, on the mesh; those of an adapter with the decoder on which it stands.

    `bases`: see `load_model`.

    Raises CheckpointError if a content is not what its manifest says, or a base not the one that the adapter was
    trained on.
    """
    base = manifest["base"]
    if base is None:
        scalar, attributes = manifest["makes"] == REWARD, len(rated_attributes(manifest)) or None
        shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0), scalar=scalar, attributes=attributes))
        known, content = {} if bases is None else bases, manifest["content_hash"]
        if content not in known:
            known[content] = _checked(folder, manifest, load_params(folder / "params", sharded_shapes(shapes, mesh)))
        return known[content]
    beneath = (folder / base["path"]).resolve()
    own = _checked(folder, manifest, load_params(folder / "params"))  # small, and of the shapes that it has
    own = jax.device_put(own, sharding.shardings(own, mesh))
    of_base = read_manifest(beneath)
    if of_base["content_hash"] != base["content_hash"]:
        raise CheckpointError(
            f"{folder} is an adapter on the content {base['content_hash'][:12]}, but {beneath} holds "
            f"{of_base['content_hash'][:12]}: bring back the base that it was trained on"
        )
    return load_tree(beneath, of_base, model, mesh, bases) | own


def whole(folder: Path, manifest: dict, devices: Sequence[Any] | None = None) -> tuple[Model, Params]:
    """Model and parameters of a finished checkpoint over devices, all of them unless given; an adapter is worked into
    its base."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": -1}, devices)
    model = on_mesh(ModelConfig(**manifest["architecture"]), mesh)
    return model, lora.merge(load_tree(folder, manifest, model, mesh))


def _checked(folder: Path, manifest: dict, params: Params) -> Params:
    check_content(folder, manifest, content_hash(params))
    return params


def learner(plan: Any, params: Params, *, of: str = "the parent", fold: int = 2) -> tuple[Params, Params]:
    """(what learns, what stands still) of a model's parameters: all and nothing; or adapter and head, and the decoder.

    An adapter that is there goes on learning; a fresh one is drawn from the config's seed and `fold`. Raises
    ConfigError, naming `of`, if `lora_args` ask for one of another shape or scale.
    """
    if not plan.lora_args:
        return lora.merge(params), {}
    args, build = bind(lora.init, plan.lora_args, key="lora_args"), fresh_adapter(plan, fold)
    adapter = params.get("lora") or build(params)
    here, asked = (jax.tree.map(jnp.shape, tree) for tree in (adapter, jax.eval_shape(build, params)))
    if here != asked:
        raise ConfigError(
            f"config.lora_args = {dict(plan.lora_args)}: {of} is an adapter of another shape; give its own "
            "settings, to go on with it, or none, to train all parameters"
        )
    scales, scale = [np.asarray(one["scale"]) for one in adapter["layers"].values()], lora.scaling(**args)
    known = sorted({round(float(x), 6) for found in scales for x in found.flat})
    if not any(np.isclose(x, scale, rtol=1e-4) for x in known):
        raise ConfigError(
            f"config.lora_args = {dict(plan.lora_args)}: their scale is {scale:g}, but {of} is an adapter of scale "
            f"{', '.join(f'{x:g}' for x in known)}, which it keeps; give its own alpha and rslora"
        )
    return {"lora": adapter} | {k: v for k, v in params.items() if k not in ("lora", "decoder")}, {
        "decoder": params["decoder"]
    }


def fresh_adapter(plan: Any, fold: int) -> Callable[[Params], Params]:
    """What draws the plan's adapter for a model's parameters, from the config's seed and `fold`."""
    args, key = bind(lora.init, plan.lora_args, key="lora_args"), jax.random.key(plan.seed)
    return lambda params: lora.init(jax.random.fold_in(key, fold), params, **args)


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


def get_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a plan's `mesh`, {axis: size}, over these devices or all that there are."""
    return sharding.make_mesh(axes, devices)
