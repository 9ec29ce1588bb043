"""What a family of transformers reads of its config.json: found in the source of its modelling code, without PyTorch.

Read from the installed package and not from a table of ours, so that it is true of the version that will load the
export. The source is looked at only where a config has keys that our tables do not decide.
"""

import ast
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignax.models.hf.fields import Field
from alignax.models.hf.rope_fields import ROPES


@functools.cache
def keys_read(family: str) -> frozenset[str]:
    """Every name that the modelling code of a `model_type` takes from a config, and that the modules it imports take.

    Those are transformers' own: masks, caches, rotary positions, the base class. What only they take for other families
    is among the names: that errs towards refusing.
    """
    import transformers
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    module = model_type_to_module_name(family)
    file = Path(transformers.__file__).parent / "models" / module / f"modeling_{module}.py"
    return _keys(file).union(*map(_keys, _imported(file)))


def unread_rope(fields: Sequence[Field], t: Mapping[str, Any]) -> list[str]:
    """The keys of a config's rotary parameters that nothing reads: those of another type, or of none."""
    rope = t.get("rope_parameters") or {}
    kinds = {key: group for key, group in rope.items() if isinstance(group, Mapping)}  # of layers, or none
    known = {key for field in fields for key in field.group}
    spare = [key for key in rope if kinds and key not in kinds and key != "truncate"]  # which YaRN's looks for here
    for where, group in ({f"{kind}.": group for kind, group in kinds.items()} or {"": rope} if rope else {}).items():
        kind = group["rope_type"]
        read = {"type", "rope_type", "rope_theta", *ROPES[kind]} - ({"truncate"} if kinds else set())
        read |= known | ({"partial_rotary_factor"} if kind != "default" else set())
        spare += [where + key for key in group if key not in read]
    return [f"rope_parameters.{key}" for key in sorted(spare)]


def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def _keys(file: Path) -> frozenset[str]:
    """What one file reads; most files are shared by all families."""
    return frozenset(_names(_parse(file)))


def _names(tree: ast.Module) -> Iterator[str]:
    """X of `config.X`, `self.config.X`, `getattr(config, "X", ...)` and `hasattr(config, "X")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_config(node.value):
            yield node.attr
        elif isinstance(node, ast.Call) and len(node.args) > 1 and _is_config(node.args[0]):
            name = node.args[1]
            if _last(node.func) in ("getattr", "hasattr") and isinstance(name, ast.Constant):
                yield str(name.value)


def _is_config(node: ast.expr) -> bool:
    """Whether an expression is a config, by its last name: `config`, `self.config`, `config.get_text_config()`."""
    return "config" in _last(node)


def _last(node: ast.expr) -> str:
    while isinstance(node, ast.Call):
        node = node.func
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _imported(file: Path) -> set[Path]:
    """The files of the modules that a file imports from its own package: `from ...masking_utils import x`."""
    out = set()
    for node in ast.walk(_parse(file)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            out |= {base.with_suffix(".py"), base / "__init__.py", *(base / f"{name.name}.py" for name in node.names)}
    return {path for path in out if path.is_file()}
