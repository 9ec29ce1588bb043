"""Every objective of the package, read from its signature and its docstring: what `alignax losses` shows."""

import importlib
import inspect
import re
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from alignax.config import ConfigError, names_of, suggest

_AUTHORS = r"[A-Z][\w'-]+(?: et al\.| (?:&|and) [A-Z][\w'-]+)?"
_ARXIV = r"\d{4}\.\d{5}"
# authors, year, and the arXiv number where nothing but a short name of the method stands between
_CITATION = rf"({_AUTHORS}) \(?((?:19|20)\d\d)\b\)?(?:[ ,(]+[^();.&]{{0,24}}?({_ARXIV}))?"


class Objective(NamedTuple):
    """One file of losses/."""

    name: str
    record: str  # the type of its first parameter: what the stage must feed
    paper: str  # the first that the docstring names, with its arXiv number if that follows at once
    arguments: dict[str, Any]  # hyperparameters with their defaults
    use: str  # the rest of the docstring's last line, "Use when ..."
    doc: str


def names() -> list[str]:
    """The names that a config may give as `loss`, in alphabetical order."""
    return sorted(names_of("alignax.losses"))


def objective(name: str) -> Objective:
    """The objective of that name. Raises ConfigError, with the nearest known name, if there is none."""
    if name not in names():
        raise ConfigError(f"losses: there is no loss {name!r}{suggest(name, names())}")
    return describe(getattr(importlib.import_module(f"alignax.losses.{name}"), name))


def describe(loss: Callable) -> Objective:
    """What the signature and the docstring of a loss say; "" for a paper or a use that is not said."""
    doc = inspect.getdoc(loss) or ""
    first, *rest = inspect.signature(loss).parameters.values()
    record = typing.get_type_hints(loss)[first.name].__name__
    use = re.search(r"^Use when (.+)\Z", doc, re.MULTILINE)
    arguments = {p.name: p.default for p in rest}
    return Objective(loss.__name__, record, paper(doc), arguments, use.group(1) if use else "", doc)


def paper(doc: str) -> str:
    """The first citation of a docstring: authors, year and the arXiv number behind them, or such a number alone."""
    text = " ".join(doc.split())
    found = re.search(_CITATION, text) or re.search(rf"({_ARXIV})", text)
    return " ".join(part for part in found.groups() if part) if found else ""
