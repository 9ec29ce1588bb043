"""Iterated training as a config: the steps of one round, written out n times for a pipeline."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from alignax.config import ConfigError


def rounds(n: int, steps: Mapping[str, Any], *, first: Mapping[str, str]) -> dict[str, ConfigDict]:
    """{name: config} of `n` rounds of the same steps, for the `steps` of a pipeline: "collect_1", "ppo_1", "collect_2".

    In the configs "@name" is this round's step of that name, and "@last.name" the one of the round before; `first` says
    what "@last.name" is in the first round. "@all.name" is a list, of the steps of all rounds up to there: of this
    round's too, if it comes before the step that says so. Within a list, such as path=("@pairs", "@all.mine"), it is as
    many of its items. A file of a step may stand behind it: "@last.mine/prompts.jsonl". Other references, "@sft" say,
    stay as they are. The seed of each step counts up, so that no two rounds sample alike; what stands in its data, a
    seed there too, is the same:

        made = rounds(3, dict(collect=collect, reward=reward, ppo=ppo), first=dict(ppo="@sft"))
        c.update(sft=sft, **made)
        c.steps = ("sft", *made)

    Raises ConfigError for fewer than one round, for a "@last.name" that `first` does not name, and for one of a step
    that is not there.
    """
    if not isinstance(n, int) or n < 1:
        raise ConfigError(f"rounds: n = {n!r}: expected a whole number, 1 or more")
    if unknown := set(first) - set(steps):
        raise ConfigError(f"rounds: first names {min(unknown)!r}: expected one of the steps, {', '.join(steps)}")
    out = {}
    for i in range(1, n + 1):
        for name, config in steps.items():
            at = _Place(i, list(steps), dict(first), name)
            one = ConfigDict(_renamed(dict(config), at))
            if "seed" in one:
                one.seed = int(one.seed) + i - 1  # pyright: ignore[reportArgumentType]
            out[f"{name}_{i}"] = one
    return out


class _Place(NamedTuple):
    """Where a config stands: the round, the steps in their order, what comes before the first, and its own step."""

    round: int
    steps: list[str]
    first: dict[str, str]
    name: str


def _renamed(value: Any, at: _Place) -> Any:
    """A config with the references of its round."""
    if isinstance(value, (Mapping, ConfigDict)):
        return {name: _renamed(item, at) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        made = [_renamed(item, at) for item in value]
        flat = [x for one, was in zip(made, value) for x in (one if _is_all(was) else [one])]
        return type(value)(flat)
    if not (isinstance(value, str) and value.startswith("@")):
        return value
    step, slash, file = value.partition("/")
    if _is_all(value):
        return tuple(f"{one}{slash}{file}" for one in _all(step, at))
    return _one(step, at) + slash + file


def _is_all(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("@all.")


def _all(step: str, at: _Place) -> list[str]:
    name = step.removeprefix("@all.")
    if name not in at.steps:
        raise ConfigError(f"rounds: {step!r} of {at.name!r}: expected one of the steps, {', '.join(at.steps)}")
    made = at.round if at.steps.index(name) < at.steps.index(at.name) else at.round - 1
    return [f"@{name}_{i}" for i in range(1, made + 1)]


def _one(step: str, at: _Place) -> str:
    if not step.startswith("@last."):
        return f"{step}_{at.round}" if step[1:] in at.steps else step
    name = step.removeprefix("@last.")
    if name not in at.steps or (at.round == 1 and name not in at.first):
        raise ConfigError(f"rounds: {step!r} in the first round: say what it is there, first=dict({name}='@...')")
    return at.first[name] if at.round == 1 else f"@{name}_{at.round - 1}"
