"""Errors that name the value, what was expected and the fix."""

from typing import Any

from jax import Array
from jax.core import Tracer
from jaxtyping import Float

Scalar = float | Float[Array, ""]  # a hyperparameter: a number, or one value of a sweep's axis


class Refused(ValueError):
    """A setting that a function does not take, said by `require`; other ValueErrors may be of shapes."""


def require(condition: Any, message: str) -> None:
    """Raises Refused(message) unless `condition` holds. A traced condition passes: its value is not known yet."""
    if not isinstance(condition, Tracer) and not condition:
        raise Refused(message)


def needs(record: Any, *names: str) -> tuple[Any, ...]:
    """The named fields of `record`. Raises ValueError, naming all that are missing, if one is None."""
    missing = [name for name in names if getattr(record, name) is None]
    if missing:
        kind = type(record).__name__
        raise ValueError(f"{kind}.{f', {kind}.'.join(missing)} is None: fill it before the loss is taken")
    return tuple(getattr(record, name) for name in names)


def whole_batch(loss: Any) -> Any:
    """Marks a loss whose rows know of each other (a batch mean, a sort): it is not the sum of its microbatches.

    A stage refuses such a loss with more than one microbatch; devices may still share the batch.
    """
    loss.whole_batch = True
    return loss
