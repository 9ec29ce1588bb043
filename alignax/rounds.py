"""Iterated training as a config: the steps of one round, written out n times for a pipeline."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from alignax.config import ConfigError


def rounds(n: int, steps: Mapping[str, Any], *, first: Mapping[str, str]) -> dict[str, ConfigDict]:
    """{name: config} of `n` rounds of the same steps, for the `steps` of a pipeline: "collect_1", "ppo_1", "collect_2".

    In the configs "@name" is this round's step of that name, and "@last.name" the one of the round before; `first` says
    what "@last.name" is in the first round. Other references, "@sft" say, stay as they are. The seed of each step
    counts up, so that no two rounds sample alike; what stands in its data, a seed there too, is the same:

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
            one = ConfigDict(_renamed(dict(config), i, steps, first))
            if "seed" in one:
                one.seed = int(one.seed) + i - 1  # pyright: ignore[reportArgumentType]
            out[f"{name}_{i}"] = one
    return out


def _renamed(value: Any, i: int, steps: Mapping[str, Any], first: Mapping[str, str]) -> Any:
    """A config with the references of round i."""
    if isinstance(value, (Mapping, ConfigDict)):
        return {name: _renamed(item, i, steps, first) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_renamed(item, i, steps, first) for item in value)
    if not (isinstance(value, str) and value.startswith("@")):
        return value
    if value.startswith("@last."):
        name = value.removeprefix("@last.")
        if name not in steps or (i == 1 and name not in first):
            raise ConfigError(f"rounds: {value!r} in the first round: say what it is there, first=dict({name}='@...')")
        return first[name] if i == 1 else f"@{name}_{i - 1}"
    return f"{value}_{i}" if value[1:] in steps else value
