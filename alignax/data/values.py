"""One meaning for one value: what a judgement says, whether it comes as a JSON type or as text, of whatever file.

JSON lines have types, CSV has none, and a Parquet column has one for all of its rows: so the same thumb comes as false,
0, -1, "false" or "no". Every judgement of a row is read by these functions, and by no other rule.
"""

import ast
import datetime
import json
import math
import sys
from collections import Counter
from typing import Any, TypeGuard

YES = {"true", "yes", "up", "thumbs_up", "like", "liked", "good", "desirable", "chosen", "+", "\N{THUMBS UP SIGN}"}
NO = {"false", "no", "down", "thumbs_down", "dislike", "disliked", "bad", "undesirable", "rejected", "-",
      "\N{THUMBS DOWN SIGN}"}  # fmt: skip
ABSENT = {"", "null", "none", "nan", "n/a", "na"}  # how tables write that nothing was said


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a judgement is a finite number; true and false are none."""
    limit = sys.float_info.max  # JSON has integers beyond it
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -limit <= value <= limit


def is_absent(value: Any) -> bool:
    """Whether nothing is said: null, NaN, or one of the words that tables have for it."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip().lower() in ABSENT)


def number(value: Any) -> Any:
    """The finite number that a value is or spells; any other value as it is, which `is_number` then refuses."""
    if isinstance(value, str):
        try:
            found = json.loads(value.strip())
        except (ValueError, RecursionError):
            return value
        return found if is_number(found) else value
    return value


def truth(value: Any) -> bool | None:
    """What a thumb or a verdict says: true, 1, "1", "true", "yes" and their like; false, 0, -1, "0", "no" and theirs.

    None for anything else, a rate between 0 and 1 among them.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        word = value.strip().lower().replace(" ", "_")
        if word in YES | NO:
            return word in YES
        value = number(value)
    return value == 1 if is_number(value) and value in (-1, 0, 1) else None


def keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for a key that it has twice, of which a dict would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"an object has the key {twice!r} twice")
    return found


def parsed(text: str) -> Any:
    """What a JSON text says. Raises ValueError if it is none, NaN and numbers beyond every float included."""
    try:
        return finite(json.loads(text, object_pairs_hook=keys_once))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def finite(value: Any) -> Any:
    """A value as JSON has it: dates as text. Raises ValueError for a number that is not finite, and for other types."""
    if isinstance(value, dict):
        return {str(name): finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not is_number(value):
        raise ValueError(f"{value} is no JSON")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise ValueError(f"{type(value).__name__} is no JSON")


def unpacked(value: Any) -> Any:
    """The list or object that a text is, as tables keep them, in JSON or as Python prints it; else the value itself."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return parsed(value)
    except ValueError:
        pass
    try:
        return finite(ast.literal_eval(value.strip()))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def kind(value: Any) -> str:
    """What a value is, in JSON's words, as a refusal says it."""
    if value is None:
        return "null"
    names = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
