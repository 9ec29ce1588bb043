"""Checks a stage's config before anything is loaded or compiled: unknown keys, wrong types, misspelt arguments."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from alignax.config import ConfigError, bind, check, plain, record_of, resolve, typed
from alignax.ops.kl import check_placement
from alignax.train import advantages, online
from alignax.types import Pair
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
    "scoring_args": (online.shape_scores, ()),
    "update_args": (online.updates, ()),
    "annotator_args": (Annotator, ()),
}

# losses of the package whose record no stage can fill: they are for programs of one's own
UNFED = {
    "nash_md": "it needs the preference over replies of a mixture of policy and reference",
    "xpo": "it needs pairs of a sample of the policy and one of the reference",
}


def precheck(config: dict[str, Any], prefix: str = "") -> None:
    """Raises ConfigError for whatever can be known to be wrong from the config alone."""
    name = config.get("stage")
    try:
        defaults = _stage(name).get_config()
    except (ModuleNotFoundError, AttributeError):
        raise ConfigError(f"config.{prefix}stage = {name!r}: there is no such stage") from None
    check(config, plain(defaults), prefix=prefix)
    arguments(config, prefix)
    origin(config, prefix)
    sizes(config, prefix)
    losses(config, prefix)
    if name == "online":
        settings_online(config, prefix)
    if name == "collect":
        settings_collect(config, prefix)


def arguments(config: dict[str, Any], prefix: str) -> None:
    """Every choice must exist, and take the arguments that it is given; groups are checked likewise."""
    for key, (package, args, given) in CHOICES.items():
        if config.get(key):
            bind(resolve(config[key], package, key=prefix + key), config[args], key=prefix + args, given=given)
        elif config.get(args):
            raise ConfigError(f"config.{prefix}{args} is set, but config.{prefix}{key} is empty: nothing reads it")
    if config.get("reward_weights") and not config["reward_from"]:
        raise ConfigError(f"config.{prefix}reward_weights is set, but config.{prefix}reward_from is empty")
    for key, (function, given) in FIXED.items():
        if key in config:
            bind(function, config[key], key=prefix + key, given=given)
    if "probe" in config:
        arguments(config["probe"], f"{prefix}probe.")


def origin(config: dict[str, Any], prefix: str) -> None:
    """A stage starts from a finished one; SFT may also start from nothing, and must then say what to make."""
    if config["init_from"]:
        return
    if config["stage"] != "sft":
        raise ConfigError(f"config.{prefix}init_from is empty: this stage starts from the folder of a finished policy")
    for key in ("model", "tokenizer"):
        if not config[key]:
            raise ConfigError(f"config.{prefix}{key} is empty, and so is config.{prefix}init_from: set one of them")


def sizes(config: dict[str, Any], prefix: str) -> None:
    """Batches must divide over the devices, and into the parts that they are cut into."""
    devices, batch = jax.device_count(), config.get("batch_size", jax.device_count())
    update = bind(online.updates, config.get("update_args", {}), key=f"{prefix}update_args")
    for key in ("epochs", "minibatches", "microbatches"):
        if update[key] < 1:
            raise ConfigError(f"config.{prefix}update_args.{key} = {update[key]}: expected 1 or more")
    minibatches, microbatches = update["minibatches"], config.get("microbatches", update["microbatches"])
    probe = config.get("probe", {})
    wanted = [("batch_size", batch, devices, "devices"), ("batch_size", batch, minibatches, "minibatches")]
    if batch % minibatches == 0:
        wanted += [("batch_size", batch // minibatches, microbatches, "microbatches")]
    if probe.get("source"):
        wanted += [("probe.batch_size", probe["batch_size"], devices, "devices")]
    for key, size, parts, what in wanted:
        if parts < 1 or size < 1 or size % parts:
            raise ConfigError(f"config.{prefix}{key}: {size} rows do not divide over {parts} {what}")


def losses(config: dict[str, Any], prefix: str) -> None:
    """Every loss and further term must take a record that the stage makes, and bear to be cut into microbatches."""
    if not config.get("loss"):
        return
    named = {"loss": config["loss"]} | {f"terms.{name}": name for name in config.get("terms", {})}
    found = {key: resolve(path, "alignax.losses", key=prefix + key) for key, path in named.items()}
    records = tuple(_stage(config["stage"]).RECORDS)
    kinds = {key: record_of(loss, records, key=prefix + key) for key, loss in found.items()}
    for name, args in config.get("terms", {}).items():
        if not isinstance(args, dict):
            raise ConfigError(f"config.{prefix}terms.{name} = {args!r}: expected a group such as dict(coefficient=0.5)")
        if found[f"terms.{name}"] is found["loss"]:
            raise ConfigError(f"config.{prefix}terms.{name} is config.loss itself: a term is added to it")
        bind_term(name, args, key=f"{prefix}terms.{name}")
    for key, kind in kinds.items():
        if (reason := UNFED.get(named[key])) and config["stage"] in ("online", "offline"):
            raise ConfigError(f"config.{prefix}{key} = {named[key]!r}: {reason}, which no stage samples yet")
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


def bind_term(name: str, args: dict[str, Any], *, key: str) -> tuple[float, Callable]:
    """(coefficient, record -> Loss) of one of the `terms` of a config."""
    loss = resolve(name, "alignax.losses", key=key)
    own = {name: value for name, value in args.items() if name != "coefficient"}
    coefficient = typed(args.get("coefficient", 1.0), float, key=f"{key}.coefficient")
    return coefficient, partial(loss, **bind(loss, own, key=key))


def _stage(name: Any) -> Any:
    return importlib.import_module(f"alignax.stages.{name}")


def settings_collect(config: dict[str, Any], prefix: str) -> None:
    """The kind of judgement decides how many samples it needs, and which of the annotator's faults it can show."""
    kind, samples, args = config["kind"], config["samples_per_prompt"], config["annotator_args"]
    kinds = _stage("collect").KINDS
    if kind not in kinds:
        raise ConfigError(f"config.{prefix}kind = {kind!r}: expected one of {', '.join(kinds)}")
    wrong = {"pairs": samples != 2, "rankings": samples < 2, "ratings": samples < 1}[kind]
    if wrong:
        expected = {"pairs": "2; for more take kind = 'rankings'", "rankings": "2 or more", "ratings": "1 or more"}
        raise ConfigError(f"config.{prefix}samples_per_prompt = {samples}: {kind} take {expected[kind]}")
    unread = {"ratings": args, "rankings": ["tie_below"] if args.get("tie_below") else []}.get(kind)
    if unread:
        raise ConfigError(
            f"config.{prefix}annotator_args.{next(iter(unread))}: {kind} do not read it; "
            + ("ratings are the gold parts themselves" if kind == "ratings" else "a ranking has no ties")
        )


def settings_online(config: dict[str, Any], prefix: str) -> None:
    """Settings of the online stage that need, or exclude, each other."""
    if bool(config["reward"]) == bool(config["reward_from"]):
        which = f"config.{prefix}reward_from (a reward model) or config.{prefix}reward (a function of text)"
        raise ConfigError(f"{which}: set exactly one")
    if config["critic_init"] not in ("reward", "policy", "none"):
        raise ConfigError(
            f"config.{prefix}critic_init = {config['critic_init']!r}: expected 'reward', 'policy' or 'none'"
        )
    settings_advantage(config, prefix)
    if config["critic_init"] == "reward" and not config["reward_from"]:
        raise ConfigError(
            f"config.{prefix}critic_init = 'reward' needs config.reward_from; with a text reward use 'policy', or "
            "'none' if the advantage needs no critic"
        )
    if not config["kl_coef"] > 0 and config["kl_controller"] in ("adaptive_kl", "pid_kl"):
        raise ConfigError(
            f"config.{prefix}kl_coef = {config['kl_coef']}: {config['kl_controller']} multiplies it; expected > 0"
        )
    if config["kl_placement"] == "loss" and config["advantage"] in ("winners", "best_and_worst"):
        raise ConfigError(
            f"config.{prefix}kl_placement = 'loss' with advantage {config['advantage']!r}: only chosen replies are "
            "learnt from, and the KL over those is not the policy's; use 'reward', with kl_coef = 0 for none"
        )
    if not config["temperature"] > 0:
        raise ConfigError(
            f"config.{prefix}temperature = {config['temperature']}: expected > 0; a greedy policy has no log-ratio"
        )
    try:
        check_placement(config["kl_estimator"], config["kl_placement"])
    except ValueError as error:
        raise ConfigError(f"config.{prefix}kl_estimator, config.{prefix}kl_placement: {error}") from None


def settings_advantage(config: dict[str, Any], prefix: str) -> None:
    """Critic, advantage, group size and loss must fit each other."""
    name, critic, group = config["advantage"], config["critic_init"], config["samples_per_prompt"]
    if name == "gae" and critic == "none":
        raise ConfigError(f"config.{prefix}advantage = 'gae' needs a critic: set critic_init to 'policy' or 'reward'")
    if name in vars(advantages) and name != "gae":
        values = ("value_loss", "value_loss_args", "value_optimizer", "value_optimizer_args")
        default = plain(_stage("online").get_config())
        changed = [key for key in values if config[key] != default[key]]
        if critic != "none":
            raise ConfigError(
                f"config.{prefix}critic_init = {critic!r}: advantage {name!r} has no critic; set critic_init to 'none'"
            )
        if changed:
            raise ConfigError(f"config.{prefix}{changed[0]} is set, but there is no critic (critic_init = 'none')")
    grouped = name in ("group_baseline", "winners", "best_and_worst") or config["oversample"] > 1
    if group < 1 or (grouped and group < 2):
        raise ConfigError(
            f"config.{prefix}samples_per_prompt = {group}: a reply is compared with others to its prompt; "
            "expected 2 or more"
        )
    if config["oversample"] < 1:
        raise ConfigError(f"config.{prefix}oversample = {config['oversample']}: expected 1 (off) or more")
    loss = resolve(config["loss"], "alignax.losses", key=f"{prefix}loss")
    if record_of(loss, _stage("online").RECORDS, key=f"{prefix}loss") is Pair:
        if name != "best_and_worst":
            raise ConfigError(
                f"config.{prefix}loss = {config['loss']!r} takes pairs: set advantage to 'best_and_worst', not {name!r}"
            )
        if config["update_args"].get("microbatches", 1) > 1:
            raise ConfigError(f"config.{prefix}update_args.microbatches: a loss on pairs is not cut into microbatches")
        if config["update_args"].get("kl_limit", 0.0) > 0:
            raise ConfigError(f"config.{prefix}update_args.kl_limit: a loss on pairs measures no KL to the sampler")
        if config["loss"] == "wpo":
            raise ConfigError(f"config.{prefix}loss = 'wpo' corrects for pairs that others sampled: use it offline")
