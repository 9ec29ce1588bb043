"""Packages that only some rewards need."""

import importlib
from types import ModuleType


def package(module: str, name: str) -> ModuleType:
    """The module. Raises ImportError, with the command that installs it, where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{name} is not installed: pip install {name}, or pip install 'alignax[verify]'") from error
