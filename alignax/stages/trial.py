"""Calls on shapes alone: what a function says of its settings, before anything is loaded or compiled."""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alignax.config import ConfigError

SIZES = {"B": 4, "T": 3, "V": 5, "K": 2, "A": 2}


def tried(function: Callable, *args: Any, key: str) -> None:
    """Traces `function` on shapes. Raises ConfigError with what it says of the settings that it was given.

    Only a ValueError, by which the functions of this package refuse a value, is read as one; others go through.
    """
    try:
        jax.eval_shape(function, *args)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.{key}: {error}") from None


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
