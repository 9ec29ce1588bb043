"""Calls of tools in a turn's text, in the format of the chat template, and what is wrong with them."""

import contextlib
import inspect
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from alignax.data.counts import DataError
from alignax.data.rendering import called
from alignax.data.tokenizer import Tokenizer

MOST = 16  # calls of one turn that are made


class Call(NamedTuple):
    """A call, or why it is none."""

    name: str = ""
    arguments: dict[str, Any] = {}
    error: str = ""  # what the policy is told


class Format(NamedTuple):
    """How calls are written."""

    parse: Callable[[str], list[Call]]  # of a turn's text
    mark: re.Pattern | None  # what nothing but a call in this format has; None: there is no such
    shown: str  # an example, for errors and prompts


def parse(text: str, name: str) -> list[Call]:
    """The calls of a turn, in order; none: it calls nothing. One in another format is an error that says the right one.

    Args:
      name: a key of FORMATS.
    """
    own = FORMATS[name]
    if found := own.parse(text):
        return [*found[:MOST], *[Call(error=f"more than {MOST} calls in one turn: the others are not made")] *
                (len(found) > MOST)]  # fmt: skip
    others = [one for other, one in FORMATS.items() if other != name and one.mark and one.mark.search(text)]
    return [Call(error=f"a call has to be written as {own.shown}")] if others else []


def format_of(tokenizer: Tokenizer, template: str) -> str:
    """The format in which a chat template writes calls, by how it writes one; "plain" for one without tools.

    Raises DataError for a format that is not known here.
    """
    if template != "chat" or (found := called(tokenizer)) is None:
        return "plain"
    text = found[0][found[1] :]
    if "ping" not in text:
        return "plain"
    for name, mark in (("xml", "<function="), ("hermes", "<tool_call>"), ("mistral", "[TOOL_CALLS]")):
        if mark in text:
            return name
    if re.search(r'\{\s*"name"\s*:\s*"ping"\s*,\s*"(parameters|arguments)"', text):
        return "llama"
    raise DataError(
        f"the chat template writes a call as {text.strip()[:80]!r}: expected one of the formats "
        f"{', '.join(name for name in FORMATS if name != 'plain')}; an environment of your own may read it in `step`"
    )


def made_of(text: str, *, names: tuple[str, ...] = ("arguments", "parameters")) -> Call:
    """The call that a JSON object is."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Call(error=f"the call is no JSON ({error})")
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return Call(error='a call has to be {"name": ..., "arguments": {...}}')
    arguments = next((found[name] for name in names if name in found), {})
    return with_arguments(found["name"], arguments)


def with_arguments(name: str, arguments: Any) -> Call:
    """The call of a name with its arguments, which may be JSON text."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            return Call(name, error=f"the arguments of {name} are no JSON ({error})")
    if not isinstance(arguments, dict):
        return Call(name, error=f"the arguments of {name} have to be an object such as {{...}}, by name")
    return Call(name, arguments)


# ---- formats


def hermes(text: str) -> list[Call]:
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen."""
    found = re.findall(r"<tool_call>(.*?)(</tool_call>|(?=<tool_call>)|$)", text, re.DOTALL)
    return [made_of(body) if end else Call(error="the call has no </tool_call>") for body, end in found]


def xml(text: str) -> list[Call]:
    """<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>: Qwen's coders."""
    out = []
    for name, body, end in re.findall(r"<function=([^>\s]*)>(.*?)(</function>|$)", text, re.DOTALL):
        given = re.findall(r"<parameter=([^>\s]*)>\n?(.*?)\n?</parameter>", body, re.DOTALL)
        out.append(Call(name, dict(given)) if end else Call(name, error="the call has no </function>"))
    return out or ([Call(error="a call needs <function=NAME>")] if "<tool_call>" in text else [])


def llama(text: str) -> list[Call]:
    """{"name": ..., "parameters": {...}}, which is the whole turn, with <|python_tag|> before it or without."""
    body = text.strip().removeprefix("<|python_tag|>").strip()
    marked = "<|python_tag|>" in text
    if not marked and not re.match(r'\{\s*"(name|type|parameters|arguments)"', body):
        return []
    return [made_of(one, names=("parameters", "arguments")) for one in re.split(r"(?<=\})\s*;\s*(?=\{)", body)]


def mistral(text: str) -> list[Call]:
    """[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], or [TOOL_CALLS]NAME[ARGS]{...} in later ones."""
    out = []
    for body in text.split("[TOOL_CALLS]")[1:]:
        body = body.strip()
        if not body.startswith("["):
            name, _, arguments = body.partition("[ARGS]") if "[ARGS]" in body else body.partition("{")
            out.append(with_arguments(name.strip(), arguments if "[ARGS]" in body else "{" + arguments))
            continue
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            out.append(Call(error=f"the calls are no JSON list ({error})"))
            continue
        out += [made_of(json.dumps(one)) for one in found]
    return out


def plain(text: str) -> list[Call]:
    """CALL NAME {...}, a line of its own: where the template has no tools."""
    return [with_arguments(*one) for one in re.findall(r"^\s*CALL (\w+)[ \t]*(.*?)\s*$", text, re.MULTILINE)]


FORMATS = {
    "hermes": Format(
        hermes, re.compile(r"<tool_call>\s*\{"), '<tool_call>{"name": NAME, "arguments": {...}}</tool_call>'
    ),
    "xml": Format(
        xml,
        re.compile(r"<function="),
        "<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>",
    ),
    "llama": Format(llama, re.compile(r"<\|python_tag\|>"), '{"name": NAME, "parameters": {...}}, alone'),
    "mistral": Format(mistral, re.compile(r"\[TOOL_CALLS\]"), '[TOOL_CALLS][{"name": NAME, "arguments": {...}}]'),
    "plain": Format(plain, re.compile(r"^\s*CALL \w+ *\{", re.MULTILINE), "CALL NAME {...}, a line of its own"),
}


# ---- what fits a tool


def fitted(function: Callable, schema: dict, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as a tool takes them; text is read as JSON where another type is asked for: xml has that.

    Raises ValueError that tells the policy what was expected.
    """
    asked = schema["function"]["parameters"]["properties"]
    out = {name: _typed(value, asked[name], name) if name in asked else value for name, value in arguments.items()}
    try:
        inspect.signature(function).bind(**out)
    except TypeError as error:
        raise ValueError(f"{error}; expected {', '.join(asked) or 'no argument'}") from None
    return out


TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,), "number": (int, float), "string": (str,), "boolean": (bool,), "array": (list,),
    "object": (dict,),
}  # fmt: skip


def _typed(value: Any, schema: dict, name: str) -> Any:
    """A value of the type that a schema says, if it says one that is known here."""
    kind, nullable = schema.get("type"), schema.get("nullable", False)
    if not isinstance(kind, str) or kind not in TYPES or (value is None and nullable):
        return value
    if isinstance(value, str) and kind != "string":
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, float) and kind == "integer" and value.is_integer():
        value = int(value)
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        raise ValueError(f"{name} = {json.dumps(value)[:80]}: expected a value of the type {kind}")
    if "enum" in schema and value not in schema["enum"]:
        raise ValueError(f"{name} = {json.dumps(value)[:80]}: expected one of {json.dumps(schema['enum'])}")
    return value
