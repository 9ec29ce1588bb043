"""The rewards of a config: `rewards = {name: {function | from, ..., weight}}`, or one by keys of its own.

With `from` and `function` together it is an ensemble, which the function makes one number of: several folders, or the
heads of one.
"""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any

from alignax.bound import Args, Bound, bound, of_config, plan_record, static, takes
from alignax.config import ConfigError, Reader, resolve, typed
from alignax.ops.checks import Scalar
from alignax.rewards.steps import OF_LOGITS, is_stepwise

OWN = ("weight", "from", "function", "attributes", "of")  # keys of a reward; the others are the function's arguments
LIMITS = {"at_least": 1.0, "at_most": -1.0}  # keys of a constraint, and the sign of its margin
DUAL = {"learning_rate": 0.1, "multiplier": 1.0, "max_multiplier": 10.0}  # further ones, and their defaults


@plan_record
class Reward:
    """One reward of a plan: a function of text, a reward model or several that are parents, or one made of others."""

    weight: Scalar = 1.0
    function: Bound | None = None  # (row, completion, *, finished) -> number, parts or None
    combine: Bound | None = None  # ([K B] of other rewards, or of the members of an ensemble) -> [B]
    of: tuple[str, ...] = static(default=())  # the names of the others
    role: str = static(default="")  # of the reward model among the parents; of members role.0, role.1, ...
    members: int = static(default=0)  # folders of an ensemble; 0: one, whose heads are its members if it is one
    attributes: Args = static(default=Args())  # weights of what it rates
    key: str = static(default="")  # of the config: the arguments of the function, or the weights of the attributes
    constraint: dict[str, Scalar] = dataclasses.field(default_factory=dict)  # of `train.algorithm.Constraint`; {}: none
    per_step: str = static(default="")  # of a process reward model: what is made of its logits (`rewards.steps`)
    step_ends: str = static(default="")  # the text with which a step ends; "": it is no reward of steps


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
        if is_stepwise(text):
            raise r.error("reward", "it scores steps: name it under config.rewards, with the text that ends a step")
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
            'where there is none, or parts with a "total"; or (rows, completions, *, finished, ...) -> a list of these'
        ) from None
    except ValueError:  # a builtin that does not say
        pass


def one_of(name: str, args: Any, key: str) -> Reward:
    """One of `rewards`. Raises ConfigError."""
    if not name.isidentifier():
        raise ConfigError(f"config.{key}: expected a name such as 'helpful' for a reward, of letters, digits and _")
    made = isinstance(args, Mapping) and "of" in args
    if not isinstance(args, Mapping) or not (args.get("from") or args.get("function") or made):
        raise ConfigError(
            f"config.{key} = {args!r}: expected dict(function=..., weight=...), a reward over text with its arguments, "
            "or {'from': folder, 'weight': ...}, a reward model"
        )
    if limits := set(args) & set(LIMITS):
        if len(limits) > 1 or "weight" in args:
            raise ConfigError(f"config.{key}: a constraint has 'at_least' or 'at_most', and no 'weight'")
        dual = {name: args[name] for name in DUAL if name in args}
        limit = limits.pop()
        rest = {name: value for name, value in args.items() if name not in (*DUAL, limit)}
        found = one_of(name, rest | {"weight": 0.0}, key)
        if found.step_ends:
            raise ConfigError(f"config.{key}.{limit}: a constraint is on the mean of a whole reply, not on its steps")
        return dataclasses.replace(found, constraint=constraint(dual, limit, args[limit], key))
    weight = weight_of(args, key)
    if "step_ends" in args or "per_step" in args:
        return stepwise(name, args, key)
    if made:
        return combined(args, weight, key)
    if args.get("from") and args.get("function"):
        return ensemble(name, args, weight, key)
    if args.get("function"):
        own = {name: value for name, value in args.items() if name not in ("weight", "function")}
        function = bound(args["function"], own, key=f"{key}.function", args_key=key, given=("finished",))
        if is_stepwise(function):
            raise ConfigError(f"config.{key}: {function.name!r} scores steps; say with what these end, step_ends='\\n'")
        check_signature(function, f"{key}.function")
        return Reward(weight=weight, function=function, key=key)
    if unknown := set(args) - set(OWN):
        raise ConfigError(f"config.{key}.{min(unknown)}: a reward model takes 'from', 'weight' and 'attributes' alone")
    if not isinstance(args["from"], str) or not isinstance(args.get("attributes", {}), Mapping):
        raise ConfigError(
            f"config.{key} = {args!r}: expected a folder under 'from', and weights under 'attributes'; with several "
            "folders a function of alignax.rewards.combine as well"
        )
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


def ensemble(name: str, args: Mapping[str, Any], weight: Scalar, key: str) -> Reward:
    """One number of what the members of an ensemble say: several reward models, or one with heads. Raises ConfigError.

    Each rates with its own attributes' weights of 1, or with one score.
    """
    folders, several = args["from"], not isinstance(args["from"], str)
    if several and (len(folders) < 2 or not all(isinstance(one, str) and one for one in folders)):
        raise ConfigError(
            f"config.{key}.from = {folders!r}: expected the folders of 2 reward models or more, or of one"
        )
    if several and len(set(folders)) < len(folders):
        raise ConfigError(f"config.{key}.from = {folders!r}: expected different folders")
    own = {name: value for name, value in args.items() if name not in ("weight", "function", "from")}
    if takes(resolve(args["function"], "", key=f"{key}.function"), "finished"):
        raise ConfigError(
            f"config.{key}: {args['function']!r} is a function of text, which reads no 'from'; with it expected one of "
            "alignax.rewards.combine, of what the members of an ensemble say [K B]"
        )
    function = bound(args["function"], own, key=f"{key}.function", args_key=key)
    try:
        inspect.signature(function.function).bind(None, **function.options, **function.numbers)
    except TypeError as error:
        raise ConfigError(
            f"config.{key}.function = {function.name!r}: {error}; with 'from' expected a function of what its members "
            "say [K B], as those of alignax.rewards.combine"
        ) from None
    return Reward(
        weight=weight, combine=function, role=f"reward.{name}", members=len(folders) if several else 0, key=key
    )


def constraint(dual: Mapping[str, Any], name: str, limit: Any, key: str) -> dict[str, Scalar]:
    """The settings of a constraint. Raises ConfigError."""
    found = {name: typed(value, float, key=f"{key}.{name}") for name, value in (DUAL | dict(dual)).items()}
    for setting, value in found.items():
        if isinstance(value, float) and not 0 < value < math.inf:
            raise ConfigError(f"config.{key}.{setting} = {value}: expected a positive number")
    first, most = found["multiplier"], found["max_multiplier"]
    if isinstance(first, float) and isinstance(most, float) and first > most:
        raise ConfigError(f"config.{key}.multiplier = {first}: expected at most max_multiplier = {most}")
    limit = typed(limit, float, key=f"{key}.{name}")
    if isinstance(limit, float) and not math.isfinite(limit):
        raise ConfigError(f"config.{key}.{name} = {limit}: expected a finite number")
    return found | {"limit": limit, "sign": LIMITS[name]}


def stepwise(name: str, args: Mapping[str, Any], key: str) -> Reward:
    """A reward of the steps of a reply: a process reward model's, or a function of their texts. Raises ConfigError."""
    marker, kind = args.get("step_ends"), args.get("per_step", "")
    if not isinstance(marker, str) or not marker:
        raise ConfigError(f"config.{key}.step_ends = {marker!r}: expected the text with which a step ends, '\\n' say")
    rest = {name: value for name, value in args.items() if name not in ("step_ends", "per_step")}
    if args.get("from") and not args.get("function"):
        if kind not in OF_LOGITS:
            raise ConfigError(f"config.{key}.per_step = {kind!r}: expected one of {', '.join(map(repr, OF_LOGITS))}")
        return dataclasses.replace(one_of(name, rest, key), per_step=kind, step_ends=marker)
    if kind or "from" in args or "of" in args:
        raise ConfigError(f"config.{key}.per_step is of a process reward model alone, {{'from': folder, ...}}")
    own = {name: value for name, value in rest.items() if name not in ("weight", "function")}
    function = bound(args["function"], own, key=f"{key}.function", args_key=key, given=("finished",))
    if not is_stepwise(function):
        raise ConfigError(
            f"config.{key}.function = {function.name!r} takes no steps; with 'step_ends' expected (row, steps, *, "
            "finished, ...) -> a number for each"
        )
    check_signature(function, f"{key}.function")
    weight = typed(args.get("weight", 1.0), float, key=f"{key}.weight")
    return Reward(weight=weight, function=function, key=key, step_ends=marker)
