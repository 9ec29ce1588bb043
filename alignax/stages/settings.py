"""Settings of one stage that need, or exclude, each other; called by `precheck`."""

import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from alignax.config import ConfigError, bind, names_of, record_of, resolve
from alignax.data.packing import MODES
from alignax.data.templates import TRAIN_ON
from alignax.ops.advantages import truncated_weights
from alignax.ops.kl import check_placement
from alignax.stages.trial import shapes_of, tried
from alignax.train.online import shape_scores
from alignax.train.reference import follow
from alignax.train.state import Moments
from alignax.types import Loss, Pair, Rollout
from alignax.worlds.annotators import Annotator

ESTIMATORS = names_of("alignax.train.advantages")
# the opponents that an advantage of the package may have, and those that it cannot do without
OPPONENTS = {
    "remax": ("greedy",),
    "vbon": ("reference",),
    "win_probability": ("mixture", "reference", "greedy"),
    "best_and_worst": ("none", "reference"),
}


def sft(config: dict[str, Any], prefix: str) -> None:
    """What counts can be found in the template."""
    if config["train_on"] not in TRAIN_ON:
        raise ConfigError(
            f"config.{prefix}train_on = {config['train_on']!r}: expected one of {', '.join(map(repr, TRAIN_ON))}"
        )
    if config["train_on"] == "assistant" and config["template"] != "chat":
        raise ConfigError(
            f"config.{prefix}train_on = 'assistant' with template = {config['template']!r}: only a chat template has "
            "turns; set template to 'chat', or train_on to 'completion' or 'all'"
        )


def packing(config: dict[str, Any], prefix: str) -> None:
    """How texts may stand in rows."""
    if config["packing"] not in MODES:
        raise ConfigError(
            f"config.{prefix}packing = {config['packing']!r}: expected one of {', '.join(map(repr, MODES))}"
        )


def sampling(config: dict[str, Any], prefix: str) -> None:
    """What is sampled can be: of a stage, or of its probe."""
    if not config["temperature"] >= 0 or config["max_new_tokens"] < 1:
        given = f"config.{prefix}temperature = {config['temperature']}, max_new_tokens = {config['max_new_tokens']}"
        raise ConfigError(f"{given}: expected a temperature of 0 (greedy) or more, and 1 token or more")


def online(config: dict[str, Any], prefix: str, defaults: dict[str, Any], kind: Any) -> None:
    """Settings of the online stage that need, or exclude, each other."""
    if bool(config["reward"]) == bool(config["reward_from"]):
        which = f"config.{prefix}reward_from (a reward model) or config.{prefix}reward (a function of text)"
        raise ConfigError(f"{which}: set exactly one")
    if config["critic_init"] not in ("reward", "policy", "none"):
        raise ConfigError(
            f"config.{prefix}critic_init = {config['critic_init']!r}: expected 'reward', 'policy' or 'none'"
        )
    advantage(config, prefix, defaults, kind)
    if config["critic_init"] == "reward" and not config["reward_from"]:
        raise ConfigError(
            f"config.{prefix}critic_init = 'reward' needs config.reward_from; with a text reward use 'policy', or "
            "'none' if the advantage needs no critic"
        )
    if not config["kl_coef"] >= 0:
        raise ConfigError(
            f"config.{prefix}kl_coef = {config['kl_coef']}: expected 0 (no penalty) or more; less rewards the KL"
        )
    if not config["kl_coef"] > 0 and config["kl_controller"] in ("adaptive_kl", "pid_kl"):
        raise ConfigError(
            f"config.{prefix}kl_coef = {config['kl_coef']}: {config['kl_controller']} multiplies it; expected > 0"
        )
    if config["kl_placement"] != "loss" and config["kl_loss_args"]:
        raise ConfigError(
            f"config.{prefix}kl_loss_args is set, but kl_placement = {config['kl_placement']!r}: no loss reads it; set "
            "kl_placement to 'loss'"
        )
    if config["kl_placement"] == "loss" and "kl" in config["terms"]:
        raise ConfigError(f"config.{prefix}terms.kl: kl_placement = 'loss' adds that term already, times kl_coef")
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
    values(config, prefix, kind)


def episodes(batch_size: int, samples_per_prompt: int, opponent: str, oversample: int) -> int:
    """Replies that the policy itself samples in one iteration: what a KL controller counts in."""
    return batch_size * (samples_per_prompt if opponent == "none" else 1) * oversample


def opponent(config: dict[str, Any], prefix: str, defaults: dict[str, Any]) -> None:
    """Who replies beside the policy, for whom, and how often."""
    rival, name, group = config["opponent"], config["advantage"], config["samples_per_prompt"]
    known = ("none", "greedy", "reference", "mixture")
    fitting = OPPONENTS.get(name, known if name not in ESTIMATORS else ("none",))
    if rival not in known or rival not in fitting:
        expected = " or ".join(repr(one) for one in (fitting if rival in known else known))
        raise ConfigError(f"config.{prefix}opponent = {rival!r}: expected {expected} with advantage {name!r}")
    share = config["opponent_share"]
    if not 0 <= share <= 1:
        raise ConfigError(f"config.{prefix}opponent_share = {share}: expected a share in [0, 1]")
    if share != defaults["opponent_share"] and rival != "mixture":
        raise ConfigError(f"config.{prefix}opponent_share is set, but the opponent is {rival!r}, not 'mixture'")
    if group > 2 and (rival == "greedy" or (rival != "none" and name == "best_and_worst")):
        raise ConfigError(
            f"config.{prefix}samples_per_prompt = {group}: one reply of the policy and one of the opponent {rival!r} "
            "make 2"
        )
    charged = config["kl_coef"] if config["kl_placement"] == "reward" else 0.0
    if charged and rival != "none" and name == "best_and_worst":
        raise ConfigError(
            f"config.{prefix}kl_coef = {charged}: in the reward it charges one side of a comparison only; set it to 0"
        )
    if charged and config["loss"] == "nash_md":
        raise ConfigError(f"config.{prefix}kl_coef = {charged}: nash_md has its own KL, by tau; set it to 0")
    named = {"xpo": ("opponent", "reference"), "nash_md": ("advantage", "win_probability")}
    for loss in (config["loss"], *config["terms"]):
        if loss in named and config[named[loss][0]] != named[loss][1]:
            key, value = named[loss]
            raise ConfigError(f"config.{prefix}{key} = {config[key]!r}: the loss {loss!r} needs {value!r}")


def distill(config: dict[str, Any], prefix: str) -> None:
    """There is a teacher, and a share of steps to sample in."""
    if not config["teacher_from"]:
        raise ConfigError(
            f"config.{prefix}teacher_from is empty: expected the folder of a finished policy to learn from"
        )
    if not 0 <= config["on_policy"] <= 1:
        raise ConfigError(
            f"config.{prefix}on_policy = {config['on_policy']}: expected a share of the steps, from 0 (only the data's "
            "completions) to 1 (only the student's own samples)"
        )


def advantage(config: dict[str, Any], prefix: str, defaults: dict[str, Any], kind: Any) -> None:
    """Critic, advantage, group size and loss must fit each other."""
    name, critic, group = config["advantage"], config["critic_init"], config["samples_per_prompt"]
    if name == "gae" and critic == "none":
        raise ConfigError(f"config.{prefix}advantage = 'gae' needs a critic: set critic_init to 'policy' or 'reward'")
    if name in ESTIMATORS and name != "gae":
        values = ("value_loss", "value_loss_args", "value_optimizer", "value_optimizer_args")
        changed = [key for key in values if config[key] != defaults[key]]
        if critic != "none":
            raise ConfigError(
                f"config.{prefix}critic_init = {critic!r}: advantage {name!r} has no critic; set critic_init to 'none'"
            )
        if changed:
            raise ConfigError(f"config.{prefix}{changed[0]} is set, but there is no critic (critic_init = 'none')")
    opponent(config, prefix, defaults)
    grouped = name in ("group_baseline", "winners", *OPPONENTS) or config["oversample"] > 1
    if group < 1 or (grouped and group < 2):
        raise ConfigError(
            f"config.{prefix}samples_per_prompt = {group}: a reply is compared with others to its prompt; "
            "expected 2 or more"
        )
    if config["share_prompts"]:
        several = config["update_args"].get("microbatches", 1) > 1
        if group < 2 or config["opponent"] != "none" or several:
            raise ConfigError(
                f"config.{prefix}share_prompts puts the policy's own replies to a prompt in one row: expected "
                f"samples_per_prompt of 2 or more, not {group}, opponent 'none', not {config['opponent']!r}, and no "
                "microbatches, which would part them (use more minibatches)"
            )
    if config["oversample"] < 1:
        raise ConfigError(f"config.{prefix}oversample = {config['oversample']}: expected 1 (off) or more")
    if kind is Pair:
        if name != "best_and_worst":
            raise ConfigError(
                f"config.{prefix}loss = {config['loss']!r} takes pairs: set advantage to 'best_and_worst', not {name!r}"
            )
        if config["update_args"].get("microbatches", 1) > 1:
            raise ConfigError(f"config.{prefix}update_args.microbatches: a loss on pairs is not cut into microbatches")
        if config["correction_args"]:
            raise ConfigError(f"config.{prefix}correction_args weighs advantages: a loss on pairs has none")
        if "wpo" in (config["loss"], *config["terms"]):
            raise ConfigError(f"config.{prefix}loss = 'wpo' corrects for pairs that others sampled: use it offline")


def values(config: dict[str, Any], prefix: str, kind: Any) -> None:
    """Advantage, shaping of scores and correction, tried on shapes for what they say of their arguments."""
    if config["update_args"].get("kl_limit", 0.0) > 0:
        loss = partial(resolve(config["loss"], "alignax.losses", key=f"{prefix}loss"), **config["loss_args"])
        found = tried(loss, shapes_of(kind), key=f"{prefix}loss_args")
        if isinstance(found, Loss) and "policy/approxkl_avg" not in found.metrics:
            raise ConfigError(
                f"config.{prefix}update_args.kl_limit: the loss {config['loss']!r} measures no KL to the sampler"
            )
    group = config["samples_per_prompt"]
    score_B, done_B, tokens_B = (jax.ShapeDtypeStruct((2 * group,), dtype) for dtype in (jnp.float32, bool, jnp.int32))
    rollout, number = shapes_of(Rollout, B=2 * group), jax.ShapeDtypeStruct((), jnp.float32)

    function = resolve(config["advantage"], "alignax.train.advantages", key=f"{prefix}advantage")
    key, given = f"{prefix}advantage_args", {"kl_in_reward": config["kl_placement"] == "reward", "group": group}
    args = bind(function, config["advantage_args"], key=key, given=tuple(given))
    tried(partial(function, **given, **args), rollout, score_B, number, key=key)

    key, given = f"{prefix}scoring_args", {"max_tokens": config["max_new_tokens"]}
    args = bind(shape_scores, config["scoring_args"], key=key, given=tuple(given))
    tried(partial(shape_scores, **given, **args), score_B, done_B, tokens_B, shapes_of(Moments), key=key)

    if config["critic_init"] != "none":
        value_loss = resolve(config["value_loss"], "alignax.losses", key=f"{prefix}value_loss")
        record_of(value_loss, (Rollout,), key=f"{prefix}value_loss")
        key = f"{prefix}value_loss_args"
        args = bind(value_loss, config["value_loss_args"], key=key)
        tried(partial(value_loss, **args), rollout, key=key)

    control = resolve(config["kl_controller"], "alignax.ops.kl", key=f"{prefix}kl_controller")
    sampled = episodes(*(config[name] for name in ("batch_size", "samples_per_prompt", "opponent", "oversample")))
    key, given = f"{prefix}kl_controller_args", {"batch_size": sampled}
    args = bind(control, config["kl_controller_args"], key=key, given=tuple(given))
    takes_size = "batch_size" in inspect.signature(control).parameters
    tried(partial(control, **args, **(given if takes_size else {})), number, number, key=key)

    key = f"{prefix}correction_args"
    args = bind(truncated_weights, config["correction_args"], key=key)
    tried(partial(truncated_weights, **args), rollout.old_logp, rollout.sampler_logp, rollout.mask, key=key)


def offline(config: dict[str, Any], prefix: str, kind: Any) -> None:
    """A reference that moves or is cached is one that the loss reads; what is cached stands still."""
    how, args = config["reference"], config["reference_args"]
    if args and config["lora_args"]:
        raise ConfigError(
            f"config.{prefix}reference_args with lora_args: a mixture of two adapters is no mixture of the models; set "
            "one of them"
        )
    if how not in ("online", "cached"):
        raise ConfigError(f"config.{prefix}reference = {how!r}: expected 'online' or 'cached'")
    if how == "cached" and args:
        raise ConfigError(
            f"config.{prefix}reference = 'cached': the reference of reference_args moves, and says something else of a "
            "row after each move; use 'online'"
        )
    if how == "cached" and config["probe"]["source"]:
        raise ConfigError(
            f"config.{prefix}reference = 'cached': the probe measures the KL to the reference, whose parameters are "
            "freed; use 'online', or no probe (probe.source = '')"
        )
    if args:
        number, step = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
        args = bind(follow, args, key=f"{prefix}reference_args", given=("reference", "params", "step"))
        tried(partial(follow, **args), number, number, step, key=f"{prefix}reference_args")
    if args or how == "cached":
        reads_reference(config, prefix, kind, "reference_args is set" if args else "reference = 'cached'")


def reads_reference(config: dict[str, Any], prefix: str, kind: Any, what: str) -> None:
    """Raises ConfigError, with `what` was asked of a reference, if neither the loss nor a term reads one."""
    losses = {config["loss"]: config["loss_args"]} | config["terms"]
    for name, args in losses.items():
        loss = resolve(name, "alignax.losses", key=f"{prefix}loss")
        own = {key: value for key, value in args.items() if key != "coefficient"}
        found = tried(partial(loss, **own), shapes_of(kind, without=("ref_logp",)), key=f"{prefix}loss_args")
        if not isinstance(found, Loss):
            return  # it fails without a reference
    told = " and ".join(map(repr, losses))
    raise ConfigError(f"config.{prefix}{what}, but {told} read no reference")


def collect(config: dict[str, Any], prefix: str, kinds: tuple[str, ...]) -> None:
    """The kind of judgement decides how many samples it needs, and which of the annotator's faults it can show."""
    kind, samples, args = config["kind"], config["samples_per_prompt"], config["annotator_args"]
    if not config["reward"]:
        raise ConfigError(
            f"config.{prefix}reward is empty: an annotator needs a gold reward to perceive, module:function"
        )
    try:
        Annotator(**bind(Annotator, args, key=f"{prefix}annotator_args"))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.{prefix}annotator_args: {error}") from None
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
