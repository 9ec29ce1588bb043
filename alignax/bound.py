"""Functions with their settings: what a plan is made of. Its numbers are leaves of a pytree, all else is structure.

So `jax.vmap` over plans that differ in numbers is a sweep, and two plans of one structure run one compiled program.
"""

import contextlib
import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, dataclass_transform

import jax

from alignax.config import ConfigError, Reader, bind, resolve
from alignax.ops.checks import Refused, Scalar

T = TypeVar("T")
RAISED = "raised by "  # how the note begins that an exception of a bound function gets


class Args(dict):
    """A group of settings that is part of a structure: a dict that can be compared and hashed, and is not changed."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return hash(tuple(sorted(self)))


@jax.tree_util.register_pytree_node_class
class Bound:
    """`function` with keyword settings; called as the function is, with the arguments that are still free.

    A setting that the function refuses (`ops.checks.require`) is a ConfigError that names the config's key, whenever it
    is found: at the call, or while a program around it is traced.
    """

    def __init__(self, function: Callable, numbers: Mapping[str, Any], options: Mapping[str, Any], key: str):
        self.function, self.numbers, self.options, self.key = function, dict(numbers), Args(options), key

    def __call__(self, *args: Any, **given: Any) -> Any:
        with refusals(self.key):
            try:
                return self.function(*args, **self.options, **self.numbers, **given)
            except (Refused, ConfigError):
                raise
            except Exception as error:
                error.add_note(f"{RAISED}{self.name!r}, whose arguments are config.{self.key}")
                raise

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in (self.options | self.numbers).items())
        return f"{getattr(self.function, '__name__', self.function)}({settings})"

    def __eq__(self, other: object) -> bool:
        mine = (self.function, self.numbers, self.options, self.key)
        return isinstance(other, Bound) and mine == (other.function, other.numbers, other.options, other.key)

    def __hash__(self) -> int:
        return hash((self.function, self.options, self.key))

    @property
    def name(self) -> str:
        """The function's own."""
        return getattr(self.function, "__name__", repr(self.function))

    def given(self, **options: Any) -> "Bound":
        """The same with further options, which are structure."""
        return Bound(self.function, self.numbers, self.options | options, self.key)

    def tree_flatten(self) -> tuple:
        names = tuple(sorted(self.numbers))
        return tuple(self.numbers[name] for name in names), (self.function, names, self.options, self.key)

    @classmethod
    def tree_unflatten(cls, structure: tuple, leaves: tuple) -> "Bound":
        function, names, options, key = structure
        return cls(function, dict(zip(names, leaves, strict=True)), options, key)


@contextlib.contextmanager
def refusals(key: str) -> Iterator[None]:
    """Within it, what `ops.checks.require` refuses is a ConfigError about the config's `key`."""
    try:
        yield
    except Refused as error:
        raise ConfigError(f"config.{key}: {error}") from None


Terms = dict[str, tuple[Scalar, Bound]]  # of an objective: name -> (coefficient, record -> Loss)


def bound(
    function: str | Callable, args: Mapping[str, Any], package: str = "", *, key: str, args_key: str = "",
    given: tuple[str, ...] = (),
) -> Bound:  # fmt: skip
    """The function that the config's `key` names, or is, with its arguments: `given` are those that the caller gives.

    A parameter annotated as `Scalar` becomes a leaf. Raises ConfigError for what `resolve` and `bind` refuse.
    """
    function, args_key = resolve(function, package, key=key), args_key or f"{key}_args"
    settings = bind(function, args, key=args_key, given=given)
    numbers = {name for name, hint in typing.get_type_hints(function).items() if _is_scalar(hint)}
    numbers = {name for name in numbers if settings.get(name) is not None}
    for name in settings:
        if name not in numbers and isinstance(settings[name], jax.Array):
            raise ConfigError(f"config.{args_key}.{name} is an array, but decides what is computed: expected a number")
    leaves = {name: settings[name] for name in settings if name in numbers}
    return Bound(function, leaves, {name: settings[name] for name in settings if name not in numbers}, args_key)


def of_config(r: Reader, name: str, package: str = "", *, given: tuple[str, ...] = (), args: str = "") -> Bound | None:
    """`bound` of the config's key `name` and the group of its arguments; None where the key is empty.

    Raises ConfigError for arguments of nothing.
    """
    function, args = getattr(r, name), args or f"{name}_args"
    settings = getattr(r, args)
    if not function:
        if settings:
            raise ConfigError(f"config.{r.key(args)} is set, but config.{r.key(name)} is empty: nothing reads it")
        return None
    return bound(function, settings, package, key=r.key(name), args_key=r.key(args), given=given)


def takes(function: Callable, name: str) -> bool:
    """Whether a function, its settings bound or not, has a parameter of this name: some ask for what others do not."""
    function = function.function if isinstance(function, Bound) else function
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # a builtin that does not say
        return False


def _is_scalar(hint: Any) -> bool:
    """Whether an annotation allows for arrays of no axis beside floats."""
    return any(getattr(option, "dim_str", None) == "" for option in typing.get_args(hint))


def static(**options: Any) -> Any:
    """A field of a plan that is structure: a size, a choice, a name."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(static, dataclasses.field))
def plan_record(cls: type[T]) -> type[T]:
    """Makes a class a frozen, keyword-only dataclass that is a pytree; fields of `static()` are its structure."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls))


def fill(cls: type[T], r: Reader, **fields: Any) -> T:
    """A plan of `fields`, and of the config's own values for all others that it has under their names."""
    names = [field.name for field in dataclasses.fields(cls) if field.name not in fields and field.name in r]  # pyright: ignore[reportArgumentType]
    return cls(**fields, **{name: _frozen(getattr(r, name)) for name in names})


def _frozen(value: Any) -> Any:
    if isinstance(value, Reader):
        return Args(value.items())
    return Args(value) if isinstance(value, Mapping) else tuple(value) if isinstance(value, list) else value
