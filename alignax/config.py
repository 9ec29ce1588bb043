"""Config that cannot lie: dotted paths, argument dicts checked against signatures, views that know what was read."""

import difflib
import hashlib
import importlib
import inspect
import math
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_collections

PATH = r"[A-Za-z_]\w*(?:\.\w+)*:[A-Za-z_]\w*"  # module:function


class ConfigError(ValueError):
    """A config that cannot mean what it says. The message names the key, what was expected and the fix."""


def suggest(name: str, known) -> str:
    """'; did you mean ...?' for a misspelt name, or the list of known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known) or 'none'}"


def resolve(path: str | Callable, package: str, *, key: str) -> Callable:
    """The function that a config names, or is.

    'dpo' is a function of the module `package`, or, where each has a file of its own, `package.dpo:dpo`;
    'my.module:fn' is any importable function; without a package only such names are known. A notebook may pass the
    function itself. Raises ConfigError if the module or the function is not there.
    """
    if callable(path):
        if not hasattr(path, "__qualname__"):
            raise ConfigError(f"config.{key} = {path!r}: expected a function; write what it binds as its arguments")
        return path
    if not re.fullmatch(PATH + (r"|[A-Za-z_]\w*" if package else ""), path):
        ours = f"a name of {package}, or " if package else ""
        raise ConfigError(f"config.{key} = {path!r}: expected {ours}module:function")
    found = None if ":" in path else getattr(importlib.import_module(package), path, None)
    if inspect.isfunction(found) and found.__module__ == package:  # its own: what it imports is no choice
        return found
    module, name = path.split(":", 1) if ":" in path else (f"{package}.{path}", path)
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise  # the module is there, but something that it imports is not
        hint = "" if ":" in path else suggest(path, names_of(package))
        raise ConfigError(f"config.{key} = {path!r}: there is no module {module!r}{hint}") from None
    except AttributeError:
        raise ConfigError(f"config.{key} = {path!r}: module {module!r} has no function {name!r}") from None
    if not callable(found):
        raise ConfigError(f"config.{key} = {path!r}: {name!r} is not a function")
    return found


def names_of(package: str) -> list[str]:
    """The short names that `resolve` finds in a package or module."""
    module = importlib.import_module(package)
    if hasattr(module, "__path__"):
        return [info.name for info in pkgutil.iter_modules(module.__path__)]
    own = inspect.getmembers(module, inspect.isfunction)
    return [name for name, fn in own if fn.__module__ == package and not name.startswith("_")]


def bind(fn: Callable, args: Mapping[str, Any], *, key: str, given: tuple[str, ...] = ()) -> dict[str, Any]:
    """Checks `args` against the keyword-only parameters of `fn` and returns them, defaults filled in.

    `given` names the keyword-only parameters that the caller supplies itself. A TypedDict that `fn` takes by
    `**name: Unpack[...]` has parameters too, without defaults. Raises ConfigError for an unknown name (with the nearest
    known one), a missing one, or a value of the wrong type.
    """
    parameters = {
        name: p
        for name, p in inspect.signature(fn).parameters.items()
        if p.kind is p.KEYWORD_ONLY and name not in given
    }
    hints = typing.get_type_hints(fn)
    handed_on = {name: hint for name, hint in _unpacked(fn, hints).items() if name not in {*parameters, *given}}
    for name in args:
        if name not in parameters and name not in handed_on:
            known = [*parameters, *handed_on]
            raise ConfigError(f"config.{key}.{name}: {fn.__name__} takes no such argument{suggest(name, known)}")
    out = {name: typed(args[name], hint, key=f"{key}.{name}") for name, hint in handed_on.items() if name in args}
    for name, parameter in parameters.items():
        if name in args:
            out[name] = typed(args[name], hints.get(name, Any), key=f"{key}.{name}")
        elif parameter.default is parameter.empty:
            raise ConfigError(f"config.{key}.{name} is missing: {fn.__name__} needs it")
        else:
            out[name] = parameter.default
    return out


def _unpacked(fn: Callable, hints: Mapping[str, Any]) -> dict[str, Any]:
    """The keys and types of the TypedDict that a function takes as further keywords; {} if it takes none."""
    rest = next((name for name, p in inspect.signature(fn).parameters.items() if p.kind is p.VAR_KEYWORD), None)
    found = typing.get_args(hints[rest]) if rest and typing.get_origin(hints.get(rest)) is typing.Unpack else ()
    return typing.get_type_hints(found[0]) if found else {}


def record_of(loss: Callable, allowed: tuple[type, ...], *, key: str) -> type:
    """The type of a loss's first parameter: what the stage has to feed it.

    Raises ConfigError if it is none of the records that this stage can make.
    """
    hints = typing.get_type_hints(loss)
    first = next(iter(inspect.signature(loss).parameters), None)
    found = hints.get(first) if first else None
    if found not in allowed:
        names = " or ".join(kind.__name__ for kind in allowed)
        what = getattr(found, "__name__", found)
        raise ConfigError(f"config.{key}: {loss.__name__} takes a {what}; this stage feeds a {names}")
    return found


def typed(value: Any, expected: Any, *, key: str) -> Any:
    """`value` if it is of the expected type and not nan, else ConfigError.

    Where a float is expected an int passes, as a float, and so does a floating array of rank 0: NumPy's as a float,
    JAX's as it is, traced or not, since it may be one value of a sweep.
    """
    if _is_scalar_array(value) and type(value).__module__ == "numpy":
        value = float(value)
    if _is_nan(value):  # every comparison with it is False, so no check would find it
        raise ConfigError(f"config.{key} = nan: expected a number")
    options = typing.get_args(expected) or (expected,) if _is_union(expected) else (expected,)
    options = tuple(typing.get_origin(option) or option for option in options)
    if float in options:
        if _is_scalar_array(value):
            return value
        options = tuple(one for one in options if not hasattr(one, "array_type"))  # jaxtyping's, of which that was one
    if Any in options or any(not isinstance(option, type) for option in options):
        return value
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if int not in options else value
    if isinstance(value, options) and not (isinstance(value, bool) and bool not in options):
        return value
    names = " or ".join(option.__name__ for option in options)
    raise ConfigError(f"config.{key} = {value!r}: expected {names}, got {type(value).__name__}")


def _is_scalar_array(value: Any) -> bool:
    """A floating array of rank 0, known by its fields: commands that only read folders do without the import of JAX."""
    return getattr(value, "shape", None) == () and "float" in str(getattr(value, "dtype", ""))


def _is_nan(value: Any) -> bool:
    """Whether a number is nan; of a traced one it is not known yet."""
    if isinstance(value, float) or not _is_scalar_array(value):
        return isinstance(value, float) and math.isnan(value)
    from jax.core import Tracer

    return not isinstance(value, Tracer) and math.isnan(value)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def check(config: Mapping[str, Any], defaults: Mapping[str, Any], *, prefix: str = "") -> None:
    """Every key of `config` must be in `defaults`, with a value of the same type; `is_args` groups are free."""
    for name, value in config.items():
        key = prefix + name
        if name not in defaults:
            raise ConfigError(f"config.{key} is not a key of this stage{suggest(name, defaults)}")
        default = defaults[name]
        function = callable(value) and (f"{name}_args" in defaults or name == "source")  # itself, not its name
        if is_args(name) or default is None or function:
            continue
        if isinstance(default, Mapping):
            if not isinstance(value, Mapping):
                raise ConfigError(f"config.{key} = {value!r}: expected a group of keys, got {type(value).__name__}")
            check(value, default, prefix=key + ".")
        else:
            typed(value, type(default), key=key)
    for name in defaults:
        if name not in config:
            raise ConfigError(f"config.{prefix}{name} is missing; the stage's default is {defaults[name]!r}")


def is_args(name: str) -> bool:
    """Whether the names under a key are free: arguments of a function that another key names, folders,
    or what the config itself names."""
    free = ("data", "policies", "terms", "rewards", "reward_weights", "alarms", "phrases")
    return any(part in free or part.endswith("_args") for part in name.split("."))


class Reader:
    """A read-only view of a config that remembers which keys were read. `finish()` raises for those that were not."""

    def __init__(self, config: Mapping[str, Any], prefix: str = ""):
        self._config, self._prefix, self._read, self._children = config, prefix, set(), {}

    def __contains__(self, name: str) -> bool:
        return name in self._config

    def key(self, name: str) -> str:
        """The dotted key of a value, from the top of the config."""
        return self._prefix + name

    def error(self, name: str, expected: str) -> ConfigError:
        """That a value cannot be: 'config.key = value: expected ...'."""
        return ConfigError(f"config.{self.key(name)} = {self._config[name]!r}: {expected}")

    def require(self, condition: Any, name: str, expected: str) -> None:
        """Raises ConfigError, as `error` gives it, unless the condition holds; a traced one passes."""
        from jax.core import Tracer  # here, since a command that needs no JAX should not wait for it

        if not isinstance(condition, Tracer) and not condition:
            raise self.error(name, expected)

    def one_of(self, name: str, options: Iterable[str]) -> str:
        """A choice. Raises ConfigError for what is none of the options."""
        if (value := getattr(self, name)) not in options:
            raise self.error(name, f"expected one of {', '.join(map(repr, options))}")
        return value

    def items(self) -> list[tuple[str, Any]]:
        """All keys and values of a small group, which are then read."""
        return [(name, getattr(self, name)) for name in self._config]

    def __getattr__(self, name: str) -> Any:
        if name not in self._config:
            raise ConfigError(f"config.{self._prefix}{name} is not there{suggest(name, self._config)}")
        self._read.add(name)
        value = self._config[name]
        if isinstance(value, Mapping) and not is_args(name):
            return self._children.setdefault(name, Reader(value, f"{self._prefix}{name}."))
        return value

    def unread(self) -> list[str]:
        """The keys that nothing has read so far, in dotted form."""
        own = [self._prefix + name for name in self._config if name not in self._read]
        return own + [key for child in self._children.values() for key in child.unread()]

    def finish(self) -> None:
        """Raises ConfigError if a key was never read: a setting that changes nothing is a mistake of its author."""
        unread = self.unread()
        if unread:
            raise ConfigError(f"nothing reads config.{', config.'.join(unread)}: remove it, or the stage has a bug")


def plain(value: Any) -> Any:
    """ConfigDicts as dicts and tuples as lists: a value that JSON can hold, and that the other functions here take."""
    if isinstance(value, ml_collections.FieldReference):
        return plain(value.get())
    if isinstance(value, (Mapping, ml_collections.ConfigDict)):  # a ConfigDict is no Mapping
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def spelled(value: Any) -> Any:
    """A config with the functions that it holds by their names, module:function: what a manifest can record."""
    if isinstance(value, Mapping):
        return {name: spelled(item) for name, item in value.items()}
    if isinstance(value, list):
        return [spelled(item) for item in value]
    return f"{value.__module__}:{value.__qualname__}" if callable(value) else value


def code_of(value: Any, key: str = "") -> dict[str, str]:
    """{key: hash of the code} of every function that a config holds or names and that is not alignax's own.

    The code is the function's source and the plain values that it closes over; what it calls is not looked at. A name
    is looked up among the modules that are loaded, as those of a planned config are.
    """
    if isinstance(value, (Mapping, list)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        found = (code_of(item, f"{key}.{name}".lstrip(".")) for name, item in items)
        return {where: code for one in found for where, code in one.items()}
    if isinstance(value, str) and re.fullmatch(PATH, value):
        module, name = value.split(":")
        value = getattr(sys.modules.get(module), name, None)
    if not callable(value) or getattr(value, "__module__", "").partition(".")[0] == __package__:
        return {}
    return {key: _digest(value)}


def _digest(function: Callable) -> str:
    """A hash of a function's code and of the plain values that it closes over."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        text = repr(_instructions(function.__code__)) if hasattr(function, "__code__") else repr(function.__qualname__)
    closed = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _is_filled(cell)]
    closed = [_digest(one) if callable(one) else repr(one) for one in closed if callable(one) or _is_plain(one)]
    return hashlib.sha256("\n".join([text, *closed]).encode()).hexdigest()[:12]


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _is_plain(value: Any) -> bool:
    """Whether a value is its text: nothing in it is told by an address."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return value is None or isinstance(value, (str, bytes, bool, int, float))


def _instructions(code: types.CodeType) -> tuple:
    """What compiled code does, without where it stands."""
    constants = [_instructions(one) if isinstance(one, types.CodeType) else one for one in code.co_consts]
    return code.co_code, code.co_names, constants
