"""Checks a stage's config before anything is loaded or compiled: unknown keys, wrong types, misspelt arguments."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from alignax import lora
from alignax.config import ConfigError, bind, check, plain, record_of, resolve, typed
from alignax.losses.kl import kl as kl_loss
from alignax.models.config import ModelConfig
from alignax.models.kernels import kernel_of
from alignax.ops.advantages import truncated_weights
from alignax.stages import settings
from alignax.stages.trial import shapes_of, tried
from alignax.train import online
from alignax.train.reference import follow
from alignax.types import Layout
from alignax.worlds.annotators import Annotator

# key -> (package of its short names, key of its arguments, arguments that the stage gives)
CHOICES = {
    "loss": ("alignax.losses", "loss_args", ()),
    "value_loss": ("alignax.losses", "value_loss_args", ()),
    "optimizer": ("alignax.train.optimizer", "optimizer_args", ("total_steps",)),
    "value_optimizer": ("alignax.train.optimizer", "value_optimizer_args", ("total_steps",)),
    "advantage": ("alignax.train.advantages", "advantage_args", ("kl_in_reward", "group")),
    "kl_controller": ("alignax.ops.kl", "kl_controller_args", ("batch_size",)),
    "source": ("alignax.data.sources", "data", ("split",)),
    "model": ("alignax.models.presets", "model_args", ("vocab_size",)),
    "reward": ("", "reward_args", ("finished",)),
}
# arguments of a function that is not chosen
FIXED = {
    "scoring_args": (online.shape_scores, ("max_tokens",)),
    "correction_args": (truncated_weights, ()),
    "kl_loss_args": (kl_loss, ("estimator",)),
    "update_args": (online.updates, ()),
    "annotator_args": (Annotator, ()),
    "lora_args": (lora.init, ()),
    "reference_args": (follow, ("reference", "params", "step")),
}

# stages that may start from nothing, and the keys that say what to make; a student has its teacher's tokenizer
FRESH = {"imported": ("path",), "sft": ("model", "tokenizer"), "distill": ("model",)}


def precheck(config: dict[str, Any], prefix: str = "") -> None:
    """Raises ConfigError for whatever can be known to be wrong from the config alone."""
    name = config.get("stage")
    try:
        defaults = _stage(name).get_config()
    except (ModuleNotFoundError, AttributeError):
        raise ConfigError(f"config.{prefix}stage = {name!r}: there is no such stage") from None
    if name == "online" and (cut := {"top_k", "top_p"} & set(config)):
        raise ConfigError(
            f"config.{prefix}{min(cut)}: a policy that learns is sampled whole; under a filter the sampler gives some "
            "tokens no probability at all, and every ratio to it would be biased. Lower the temperature instead"
        )
    check(config, plain(defaults), prefix=prefix)
    arguments(config, prefix)
    compute(config, prefix)
    origin(config, prefix)
    sizes(config, prefix)
    optimizers(config, prefix)
    kind = losses(config, prefix)
    for part, place in ((config, prefix), (config.get("probe", {}), f"{prefix}probe.")):
        if "temperature" in part:
            settings.sampling(part, place)
    if "packing" in config:
        settings.packing(config, prefix)
    if name == "sft":
        settings.sft(config, prefix)
    if name == "online":
        settings.online(config, prefix, plain(defaults), kind)
    if name == "offline":
        settings.offline(config, prefix, kind)
    if name == "distill":
        settings.distill(config, prefix)
    if name == "collect":
        settings.collect(config, prefix, tuple(_stage(name).KINDS))


def arguments(config: dict[str, Any], prefix: str) -> None:
    """Every choice must exist, and take the arguments that it is given; groups are checked likewise."""
    for key, (package, args, given) in CHOICES.items():
        if config.get(key):
            bind(resolve(config[key], package, key=prefix + key), config[args], key=prefix + args, given=given)
        elif config.get(args):
            raise ConfigError(f"config.{prefix}{args} is set, but config.{prefix}{key} is empty: nothing reads it")
    if config.get("reward_weights") and not config["reward_from"]:
        raise ConfigError(f"config.{prefix}reward_weights is set, but config.{prefix}reward_from is empty")
    if config.get("source") == "mixture":
        mixture(config, prefix)
    for key, (function, given) in FIXED.items():
        if key in config:
            bind(function, config[key], key=prefix + key, given=given)
    if "probe" in config:
        arguments(config["probe"], f"{prefix}probe.")


def compute(config: dict[str, Any], prefix: str) -> None:
    """How a model is computed must be a choice that there is, and a kernel one for this device and dtype."""
    if "compute" in config:
        try:
            kernel_of(ModelConfig(vocab_size=1, **config["compute"]), rows=rows_of(config))
        except ValueError as error:
            raise ConfigError(f"config.{prefix}compute.{error}") from None


def rows_of(config: dict[str, Any]) -> Layout | None:
    """What kind of rows a stage's model reads: None for those of one text each, branches only where texts share."""
    paired = config["stage"] in ("reward", "offline")
    shared = config.get("share_prompts", False) or (config.get("packing") == "shared" and paired)
    if not shared and config.get("packing") not in ("packed", "shared"):
        return None
    place = jax.ShapeDtypeStruct((1, 1), jax.numpy.int32)
    return Layout(place, place if shared else None, place)  # pyright: ignore[reportArgumentType]


def mixture(config: dict[str, Any], prefix: str) -> None:
    """The parts of a mixture are sources with arguments and a weight, and the stage must draw by weight."""
    if "total_steps" not in config:
        raise ConfigError(
            f"config.{prefix}source = 'mixture': rows are not drawn by weight here, each is read once; name one source"
        )
    if not config["data"]["parts"]:
        raise ConfigError(f"config.{prefix}data.parts is empty: expected name = dict(source=..., weight=..., ...)")
    for name, part in config["data"]["parts"].items():
        key = f"{prefix}data.parts.{name}"
        source, args = split_part(name, part, prefix)
        weight = typed(part.get("weight"), float, key=f"{key}.weight")
        if not 0 < weight < float("inf"):
            raise ConfigError(f"config.{key}.weight = {weight}: expected a share above 0, of any unit")
        if source == "mixture":
            raise ConfigError(f"config.{key}.source = 'mixture': name its parts here, with their weights multiplied")
        bind(resolve(source, "alignax.data.sources", key=f"{key}.source"), args, key=key, given=("split",))


def split_part(name: str, part: Any, prefix: str = "") -> tuple[str, dict[str, Any]]:
    """(source, its arguments) of one part of a mixture."""
    if not isinstance(part, dict) or not isinstance(part.get("source"), str):
        raise ConfigError(f"config.{prefix}data.parts.{name} = {part!r}: expected dict(source=..., weight=..., ...)")
    return part["source"], {key: value for key, value in part.items() if key not in ("source", "weight")}


def weights_of(args: dict[str, Any]) -> dict[str, float]:
    """{part: weight} of the arguments of a mixture."""
    return {name: float(part["weight"]) for name, part in args["parts"].items()}


def origin(config: dict[str, Any], prefix: str) -> None:
    """A stage starts from a finished one; some may also start from nothing, and must then say what to make."""
    if config.get("lora_args") and not config.get("init_from"):
        raise ConfigError(
            f"config.{prefix}lora_args is set, but config.{prefix}init_from is empty: an adapter stands on a finished "
            "checkpoint"
        )
    if config.get("init_from"):
        return
    if config["stage"] not in FRESH:
        raise ConfigError(f"config.{prefix}init_from is empty: this stage starts from the folder of a finished policy")
    for key in FRESH[config["stage"]]:
        if not config[key]:
            raise ConfigError(f"config.{prefix}{key} is empty, and so is config.{prefix}init_from: set one of them")


def sizes(config: dict[str, Any], prefix: str) -> None:
    """Batches must divide over the devices, and into the parts that they are cut into."""
    devices, batch = jax.device_count(), config.get("batch_size", jax.device_count())
    update = bind(online.updates, config.get("update_args", {}), key=f"{prefix}update_args")
    tried(partial(online.updates, **update), key=f"{prefix}update_args")
    for key in ("epochs", "minibatches", "microbatches"):
        if update[key] < 1:
            raise ConfigError(f"config.{prefix}update_args.{key} = {update[key]}: expected 1 or more")
    if (rank := config.get("lora_args", {}).get("rank", 1)) < 1:
        raise ConfigError(f"config.{prefix}lora_args.rank = {rank}: expected 1 or more, such as 16")
    minibatches, microbatches = update["minibatches"], config.get("microbatches", update["microbatches"])
    probe = config.get("probe", {})
    wanted = [("batch_size", batch, devices, "devices"), ("batch_size", batch, minibatches, "minibatches")]
    if batch % minibatches == 0:
        wanted += [("batch_size", batch // minibatches, microbatches, "microbatches")]
    if config.get("share_prompts") and batch % minibatches == 0:
        wanted += [("share_prompts", batch // minibatches, devices, "devices (prompts of a minibatch)")]
    if probe.get("source"):
        wanted += [("probe.batch_size", probe["batch_size"], devices, "devices")]
    for key, size, parts, what in wanted:
        if parts < 1 or size < 1 or size % parts:
            raise ConfigError(f"config.{prefix}{key}: {size} rows do not divide over {parts} {what}")


def optimizers(config: dict[str, Any], prefix: str) -> None:
    """An optimizer says what it does not take when it is made, which costs nothing."""
    for key in ("optimizer", "value_optimizer"):
        if config.get(key):
            function = resolve(config[key], "alignax.train.optimizer", key=prefix + key)
            args = bind(function, config[f"{key}_args"], key=f"{prefix}{key}_args", given=("total_steps",))
            try:
                function(total_steps=config["total_steps"], **args)
            except ValueError as error:
                raise ConfigError(f"config.{prefix}{key}_args: {error}") from None


def losses(config: dict[str, Any], prefix: str) -> Any:
    """Every loss and further term must take a record that the stage makes, and bear to be cut into microbatches.

    Returns the record, None for a stage without a loss.
    """
    if not config.get("loss"):
        return None
    named = {"loss": config["loss"]} | {f"terms.{name}": name for name in config.get("terms", {})}
    found = {key: resolve(path, "alignax.losses", key=prefix + key) for key, path in named.items()}
    records = tuple(_stage(config["stage"]).RECORDS)
    kinds = {key: record_of(loss, records, key=prefix + key) for key, loss in found.items()}
    for name, args in config.get("terms", {}).items():
        if not isinstance(args, dict):
            raise ConfigError(f"config.{prefix}terms.{name} = {args!r}: expected a group such as dict(coefficient=0.5)")
        if found[f"terms.{name}"] is found["loss"]:
            raise ConfigError(f"config.{prefix}terms.{name} is config.loss itself: a term is added to it")
    for key, kind in kinds.items():
        if named[key] == "xpo" and config["stage"] == "offline":
            raise ConfigError(
                f"config.{prefix}{key} = 'xpo': it needs pairs of a sample of the policy and one of the reference; the "
                "online stage makes them with opponent = 'reference'"
            )
        if kind is not kinds["loss"]:
            raise ConfigError(
                f"config.{prefix}{key} takes a {kind.__name__}, config.{prefix}loss a {kinds['loss'].__name__}: "
                "terms are added up on one record"
            )
        parts = config.get("microbatches", config.get("update_args", {}).get("microbatches", 1))
        if parts > 1 and getattr(found[key], "whole_batch", False):
            raise ConfigError(
                f"config.{prefix}{key} = {named[key]!r} compares the rows of a batch with each other: it is not the "
                f"sum of {parts} microbatches; set microbatches to 1"
            )
    main = partial(found["loss"], **bind(found["loss"], config["loss_args"], key=f"{prefix}loss_args"))
    tried(main, shapes_of(kinds["loss"]), key=f"{prefix}loss_args")
    for name, args in config.get("terms", {}).items():
        key = f"{prefix}terms.{name}"
        tried(bind_term(name, args, key=key)[1], shapes_of(kinds["loss"]), key=key)
    return kinds["loss"]


def bind_term(name: str, args: dict[str, Any], *, key: str) -> tuple[float, Callable]:
    """(coefficient, record -> Loss) of one of the `terms` of a config."""
    loss = resolve(name, "alignax.losses", key=key)
    own = {name: value for name, value in args.items() if name != "coefficient"}
    coefficient = typed(args.get("coefficient", 1.0), float, key=f"{key}.coefficient")
    return coefficient, partial(loss, **bind(loss, own, key=key))


def _stage(name: Any) -> Any:
    return importlib.import_module(f"alignax.stages.{name}")
