"""The rewards of a config: `rewards = {name: {function | from, ..., weight}}`, or one by keys of its own."""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any

from alignax.bound import Args, Bound, bound, of_config, plan_record, static
from alignax.config import ConfigError, Reader, typed
from alignax.ops.checks import Scalar

OWN = ("weight", "from", "function", "attributes", "of")  # keys of a reward; the others are the function's arguments


@plan_record
class Reward:
    """One reward of a plan: a function of text, a reward model that is a parent, or one made of others."""

    weight: Scalar = 1.0
    function: Bound | None = None  # (row, completion, *, finished) -> number, parts or None
    combine: Bound | None = None  # ([K B] of other rewards) -> [B]: of `rewards.combine`
    of: tuple[str, ...] = static(default=())  # their names
    role: str = static(default="")  # of the reward model among the parents
    attributes: Args = static(default=Args())  # weights of what it rates
    key: str = static(default="")  # of the config: the arguments of the function, or the weights of the attributes


def rewards_of(r: Reader, others: Mapping[str, Reward] | None = None) -> dict[str, Reward]:
    """{name: reward}: those of `rewards`, or the single one of `reward` or `reward_from`, called "reward".

    `others` come with what is beside them, an environment say; with one a config need not name any.

    Raises ConfigError for none, for several ways at once, and for what does not fit a function.
    """
    group, text, judge = r.rewards, of_config(r, "reward", given=("finished",)), model(r)
    others = dict(others or {})
    if others and not (group or text or judge):
        return others
    if sum(map(bool, (group, text, judge))) != 1:
        which = f"config.{r.key('reward_from')} (a reward model), config.{r.key('reward')} (a function of text)"
        raise ConfigError(f"{which} or config.{r.key('rewards')} (several by name): set exactly one")
    if not isinstance(group, Mapping):
        raise ConfigError(f"config.{r.key('rewards')} = {group!r}: expected name = dict(function=..., weight=...), ...")
    if text:
        check_signature(text, r.key("reward"))
        return others | {"reward": Reward(function=text, key=text.key)}
    if judge:
        return others | {"reward": judge}
    found = others | {
        name: weighed(others[name], args, r.key(f"rewards.{name}"))
        if name in others
        else one_of(name, args, r.key(f"rewards.{name}"))
        for name, args in group.items()
    }
    for name, one in found.items():
        for other in one.of:
            if other not in found or found[other].of:
                raise ConfigError(
                    f"config.{r.key(f'rewards.{name}.of')}: {other!r} is no reward of text or of a model here; "
                    f"expected some of {', '.join(n for n, x in found.items() if not x.of) or 'such rewards beside it'}"
                )
    return found


def model(r: Reader) -> Reward | None:
    """The reward model of `reward_from` and `reward_weights`; None where there is none. Raises ConfigError."""
    if not r.reward_from:
        if r.reward_weights:
            raise ConfigError(f"config.{r.key('reward_weights')} is set, but config.{r.key('reward_from')} is empty")
        return None
    return Reward(role="reward", attributes=Args(r.reward_weights), key=r.key("reward_weights"))


def check_signature(reward: Bound, key: str) -> None:
    """Raises ConfigError for a function that is not called as a reward is."""
    try:
        inspect.signature(reward.function).bind({}, "", finished=True, **reward.options, **reward.numbers)
    except TypeError as error:
        raise ConfigError(
            f"config.{key} = {reward.name!r}: {error}; expected (row, completion, *, finished, ...) -> a number, None "
            'where there is none, or parts with a "total"'
        ) from None
    except ValueError:  # a builtin that does not say
        pass


def one_of(name: str, args: Any, key: str) -> Reward:
    """One of `rewards`. Raises ConfigError."""
    if not name.isidentifier():
        raise ConfigError(f"config.{key}: expected a name such as 'helpful' for a reward, of letters, digits and _")
    made = isinstance(args, Mapping) and "of" in args
    if not isinstance(args, Mapping) or (bool(args.get("from")) == bool(args.get("function")) and not made):
        raise ConfigError(
            f"config.{key} = {args!r}: expected dict(function=..., weight=...), a reward over text with its arguments, "
            "or {'from': folder, 'weight': ...}, a reward model"
        )
    weight = weight_of(args, key)
    if made:
        return combined(args, weight, key)
    if args.get("function"):
        own = {name: value for name, value in args.items() if name not in ("weight", "function")}
        function = bound(args["function"], own, key=f"{key}.function", args_key=key, given=("finished",))
        check_signature(function, f"{key}.function")
        return Reward(weight=weight, function=function, key=key)
    if unknown := set(args) - set(OWN):
        raise ConfigError(f"config.{key}.{min(unknown)}: a reward model takes 'from', 'weight' and 'attributes' alone")
    if not isinstance(args["from"], str) or not isinstance(args.get("attributes", {}), Mapping):
        raise ConfigError(f"config.{key} = {args!r}: expected a folder under 'from', and weights under 'attributes'")
    return Reward(
        weight=weight, role=f"reward.{name}", attributes=Args(args.get("attributes", {})), key=f"{key}.attributes"
    )


def weighed(reward: Reward, args: Any, key: str) -> Reward:
    """A reward that is there already, with the weight that a config gives it. Raises ConfigError for more than that."""
    if not isinstance(args, Mapping) or set(args) - {"weight"}:
        raise ConfigError(f"config.{key} = {args!r}: expected dict(weight=...) alone: it is the environment's reward")
    return dataclasses.replace(reward, weight=weight_of(args, key))


def weight_of(args: Mapping[str, Any], key: str) -> Scalar:
    """The weight of a reward. Raises ConfigError unless it is a finite number."""
    weight = typed(args.get("weight", 1.0), float, key=f"{key}.weight")
    if isinstance(weight, float) and not math.isfinite(weight):
        raise ConfigError(f"config.{key}.weight = {weight}: expected a finite number")
    return weight


def combined(args: Mapping[str, Any], weight: Scalar, key: str) -> Reward:
    """A reward that is made of others. Raises ConfigError."""
    of = args["of"]
    if isinstance(of, str) or not of or not all(isinstance(name, str) for name in of) or not args.get("function"):
        raise ConfigError(
            f"config.{key} = {dict(args)!r}: expected dict(function=..., of=('a', 'b'), weight=...), a function of "
            "alignax.rewards.combine or like one, and the names of the rewards that it is made of"
        )
    own = {name: value for name, value in args.items() if name not in ("weight", "function", "of")}
    function = bound(args["function"], own, key=f"{key}.function", args_key=key)
    return Reward(weight=weight, combine=function, of=tuple(of), key=key)
