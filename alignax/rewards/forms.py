"""Verifiers of form: how a reply is written. Rewards over text (`rewards.text`)."""

import json
import re
from functools import lru_cache
from typing import Any

from alignax.ops.checks import require
from alignax.rewards.extras import package


def pattern(row: dict, completion: str, *, finished: bool, expression: str, whole: bool = True) -> float:
    """1 if the reply matches a regular expression, in which "." is any character, newlines too.

    Args:
      expression: of Python's `re`.
      whole: whether the whole reply has to match, or a part of it.

    Raises:
      ValueError: an expression that `re` does not compile.
    """
    del row, finished
    found = _compiled(expression)
    return float(bool(found.fullmatch(completion.strip()) if whole else found.search(completion)))


def tags(row: dict, completion: str, *, finished: bool, names: tuple[str, ...] = ("think", "answer")) -> float:
    """1 if the reply is <a>...</a> <b>...</b>, each of the `names` once, in this order, and nothing between them.

    With its defaults the format reward of DeepSeek-R1 (2501.12948, section 2.2.2).
    """
    del row, finished
    inside = "".join(rf"\s*<{re.escape(n)}>(?:(?!</?{re.escape(n)}>).)*</{re.escape(n)}>\s*" for n in names)
    return float(bool(_compiled(inside).fullmatch(completion)))


def json_schema(row: dict, completion: str, *, finished: bool, schema: Any = None, field: str = "schema") -> float:
    """1 if the reply is JSON, alone or in a ``` block, that a JSON schema allows.

    Args:
      schema: of every row; None: each row has its own in `row[field]`, an object or the text of one.

    Raises:
      ImportError: jsonschema is not installed.
      ValueError: a schema that is none.
    """
    del finished
    validator = _validator(json.dumps(schema if schema is not None else _own(row, field)))
    try:
        value = json.loads(block(completion, "json"))
    except ValueError:
        return 0.0
    return float(validator.is_valid(value))


def block(text: str, language: str) -> str:
    """What stands in the last ``` block of a text, of a language if one says so; the whole text if there is none."""
    blocks = re.findall(r"```([\w+-]*)[^\S\n]*\n(.*?)```", text, re.DOTALL)
    own = [body for name, body in blocks if name.lower() in (language, "")]
    return (own or [text])[-1].strip()


@lru_cache(maxsize=64)
def _compiled(expression: str) -> re.Pattern:
    try:
        return re.compile(expression, re.DOTALL)
    except re.error as error:
        raise ValueError(f"expression = {expression!r}: {error}; expected a regular expression of Python") from None


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    jsonschema, value = package("jsonschema", "jsonschema"), json.loads(schema)
    made = jsonschema.validators.validator_for(value, default=jsonschema.Draft202012Validator)
    try:
        made.check_schema(value)
    except jsonschema.SchemaError as error:
        raise ValueError(f"schema = {schema[:80]}: {error.message}; expected a JSON schema") from None
    return made(value)


def _own(row: dict, field: str) -> Any:
    require(field in row, f"field = {field!r}: this row has {', '.join(sorted(row))}; expected a column with a schema")
    return json.loads(row[field]) if isinstance(row[field], str) else row[field]
