"""Calls on shapes alone: what a function says of its settings, before anything is loaded or compiled.

The shapes are guesses, and so only what `ops.checks.require` says counts: a loss of a user's own that wants larger ones
fails here in another way, which is none of its settings' fault.
"""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alignax.config import ConfigError
from alignax.ops.checks import Refused

SIZES = {"B": 4, "T": 3, "V": 5, "K": 2, "A": 2}


def tried(function: Callable, *args: Any, key: str) -> Any:
    """The shapes that `function` makes of shapes, or the exception that it raised.

    Raises ConfigError with what it says of the settings that it was given.
    """
    try:
        return jax.eval_shape(function, *args)
    except Refused as error:
        raise ConfigError(f"config.{key}: {error}") from None
    except Exception as error:
        return error


def shapes_of(record: Any, without: tuple[str, ...] = (), **sizes: int) -> Any:
    """A record of shapes from its annotations, the optional fields too but for those named in `without`.

    `sizes` are of axes, where those of `SIZES` will not do.
    """
    hints = typing.get_type_hints(record)
    fields = [field.name for field in dataclasses.fields(record)]
    return record(**{name: None if name in without else _leaf(hints[name], without, sizes) for name in fields})


def _leaf(hint: Any, without: tuple[str, ...], sizes: dict[str, int]) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint):
        return shapes_of(hint, without, **sizes)
    known = (jnp.float32, jnp.bool_, jnp.int32)
    dtype = next(dtype for dtype in known if jnp.dtype(dtype).name in hint.dtypes)
    return jax.ShapeDtypeStruct(tuple((SIZES | sizes)[axis] for axis in hint.dim_str.split()), dtype)
