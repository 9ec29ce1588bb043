"""What a function says of its settings: errors that name the value and the fix, and facts that a stage reads."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jax import Array
from jax.core import Tracer
from jaxtyping import Float

# A number that only enters arithmetic. It may be a traced array of rank 0: a leaf of a plan, an axis of a sweep. The
# annotation tells a stage so: a keyword-only parameter that is a `float`, `int`, `bool` or `str` alone decides what is
# computed (a count, a choice, an `if`), and is fixed when the program is built.
Scalar = float | Float[Array, ""]


class Refused(ValueError):
    """A setting that a function does not take, said by `require`; other ValueErrors may be of shapes."""


def require(condition: Any, message: str) -> None:
    """Raises Refused(message) unless `condition` holds. A traced condition passes: its value is not known yet."""
    if not isinstance(condition, Tracer) and not condition:
        raise Refused(message)


def between(low: float, high: float = float(np.finfo(np.float32).max)) -> Callable[[Any], Any]:
    """Whether a number, or each of an array, is a finite one of these."""
    return lambda x: (x >= low) & (x <= high)


def needs(record: Any, *names: str) -> tuple[Any, ...]:
    """The named fields of `record`. Raises ValueError, naming all that are missing, if one is None."""
    missing = [name for name in names if getattr(record, name) is None]
    if missing:
        kind = type(record).__name__
        raise ValueError(f"{kind}.{f', {kind}.'.join(missing)} is None: fill it before the loss is taken")
    return tuple(getattr(record, name) for name in names)


class Fact(NamedTuple):
    """One line of FACTS."""

    kind: type
    default: Any  # of a function that does not declare it, one from outside the package among them
    meaning: str


# What settings must fit a function, where neither its signature nor a trial on shapes can say it. A stage that cannot
# meet a fact refuses the config, with the key that does.
FACTS = {
    # losses
    "whole_batch": Fact(bool, False, "rows know of each other (a batch mean, a sort): it is no sum of microbatches"),
    "offline_only": Fact(bool, False, "is for pairs that others sampled: the online stage refuses it"),
    "online_only": Fact(bool, False, "is for pairs that the policy sampled: the offline stage refuses it"),
    "online_needs_opponent": Fact(str, "", "the one opponent that its second reply may come from; '' is any, or none"),
    "online_needs_advantage": Fact(str, "", "the one advantage that it is defined with; '' is any"),
    "own_kl": Fact(bool, False, "has a KL penalty inside: one in the reward would be a second"),
    # advantages
    "critic": Fact(bool, None, "True learns a critic, False has none; None goes with either"),
    "opponents": Fact(tuple, None, "the opponents that it is defined with, 'none' for no opponent; None is any"),
    "compares": Fact(bool, False, "compares the replies to a prompt: it needs 2 or more"),
    "chosen_only": Fact(bool, False, "learns from chosen replies only, whose KL is not the policy's: none in the loss"),
    "reads_parts": Fact(bool, False, "reads the rewards by themselves, and no score that was shaped or charged"),
    "pairs": Fact(
        bool,
        False,
        "makes one pair of each group, for a loss on pairs. With an opponent each side writes one reply: the group is "
        "of 2, and a KL in the reward is refused, as it would charge one side of a comparison",
    ),
    # opponents
    "deterministic": Fact(bool, False, "gives the same reply to a prompt every time: one is enough"),
    # KL controllers
    "multiplies": Fact(bool, False, "multiplies the coefficient, which at 0 would stay there"),
}

F = TypeVar("F", bound=Callable)


def declares(**facts: Any) -> Callable[[F], F]:
    """Puts facts of FACTS on a function, as attributes; it is returned as it is.

    Raises ValueError, when the module is imported, for a name that FACTS does not have or a value of another kind: a
    stage would read neither.
    """
    for name, value in facts.items():
        require(name in FACTS, f"declares: {name}: no such fact; expected one of {', '.join(FACTS)}")
        kind = FACTS[name].kind
        require(isinstance(value, kind), f"declares: {name} = {value!r}: expected a value of type {kind.__name__}")

    def mark(function: F) -> F:
        for name, value in facts.items():
            setattr(function, name, value)
        return function

    return mark


def fact(function: Callable, name: str) -> Any:
    """What `function` declares under that name, bound arguments or not; else the default of FACTS."""
    default = FACTS[name].default
    while isinstance(function, partial):
        function = function.func
    return getattr(function, name, default)
