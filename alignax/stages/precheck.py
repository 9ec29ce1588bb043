"""Checks a stage's config before anything is loaded or compiled: unknown keys, wrong types, misspelt arguments."""

import importlib
from typing import Any

from alignax.config import ConfigError, bind, check, plain, resolve
from alignax.train import online
from alignax.worlds.annotators import Annotator

# key -> (package of its short names, key of its arguments, arguments that the stage gives)
CHOICES = {
    "loss": ("alignax.losses", "loss_args", ()),
    "value_loss": ("alignax.losses", "value_loss_args", ()),
    "optimizer": ("alignax.train.optimizer", "optimizer_args", ("total_steps",)),
    "value_optimizer": ("alignax.train.optimizer", "value_optimizer_args", ("total_steps",)),
    "kl_controller": ("alignax.ops.kl", "kl_controller_args", ("batch_size",)),
    "source": ("alignax.data.sources", "data", ("split",)),
    "model": ("alignax.models.presets", "model_args", ("vocab_size",)),
    "reward": ("", "reward_args", ("finished",)),
}
# arguments of a function that is not chosen
FIXED = {
    "scoring_args": (online.shape_scores, ()),
    "advantage_args": (online.with_advantages, ("kl_in_reward",)),
    "update_args": (online.updates, ()),
    "annotator_args": (Annotator, ()),
}


def precheck(config: dict[str, Any], prefix: str = "") -> None:
    """Raises ConfigError for whatever can be known to be wrong from the config alone."""
    name = config.get("stage")
    try:
        defaults = importlib.import_module(f"alignax.stages.{name}").get_config()
    except (ModuleNotFoundError, AttributeError):
        raise ConfigError(f"config.{prefix}stage = {name!r}: there is no such stage") from None
    check(config, plain(defaults), prefix=prefix)
    arguments(config, prefix)


def arguments(config: dict[str, Any], prefix: str) -> None:
    """Every choice must exist, and take the arguments that it is given; groups are checked likewise."""
    for key, (package, args, given) in CHOICES.items():
        if config.get(key):
            bind(resolve(config[key], package, key=prefix + key), config[args], key=prefix + args, given=given)
        elif config.get(args):
            raise ConfigError(f"config.{prefix}{args} is set, but config.{prefix}{key} is empty: nothing reads it")
    for key, (function, given) in FIXED.items():
        if key in config:
            bind(function, config[key], key=prefix + key, given=given)
    if "probe" in config:
        arguments(config["probe"], f"{prefix}probe.")
