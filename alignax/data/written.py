"""What a chat template wrote of a row: whether a turn's words stand in its text, and which kinds of turn it drops."""

import json
from collections.abc import Iterator
from typing import Any

from alignax.data.messages import THOUGHTS, Message


def in_other_words(
    messages: list[Message], options: dict[str, Any]
) -> tuple[list[Message], dict[str, Any], dict[str, str]]:
    """The messages and options with words that stand nowhere else, and {word: what it is a part of}.

    A template that writes a turn, a call or a tool has to write these words; thoughts have some as well, and are not
    among what has to be written, since many templates leave out those of earlier turns.
    """
    others, words = [], {}
    for i, message in enumerate(messages):
        one = message | {name: f"zqx{i}thought" for name in THOUGHTS if isinstance(message.get(name), str)}
        if message["content"].strip():
            one["content"] = f"zqx{i}said"
            words[one["content"]] = f"a turn of {message['role']!r}"
        if "tool_calls" in message:
            one["tool_calls"] = [_other_call(call, f"zqx{i}n{j}") for j, call in enumerate(message["tool_calls"])]
            marks = (f"zqx{i}n{j}{part}" for j in range(len(message["tool_calls"])) for part in ("name", "value"))
            words |= dict.fromkeys(marks, "a call")
        others.append(one)
    if options.get("tools"):
        options = options | {"tools": [_other_tool(f"zqxtool{i}") for i in range(len(options["tools"]))]}
        words |= {tool["function"]["name"]: "the tools" for tool in options["tools"]}
    return others, options, words


def _other_call(call: dict[str, Any], word: str) -> dict[str, Any]:
    arguments = {"key": f"{word}value"}
    as_text = isinstance(call["function"]["arguments"], str)
    return call | {"function": {"name": f"{word}name", "arguments": json.dumps(arguments) if as_text else arguments}}


def _other_tool(name: str) -> dict[str, Any]:
    key = {"type": "string", "description": "about it"}
    schema = {"type": "object", "properties": {"key": key}, "required": ["key"]}
    return {"type": "function", "function": {"name": name, "description": "does it", "parameters": schema}}


def unwritten(message: Message, text: str) -> str:
    """What of a turn's words does not stand in its text, white space aside; "" if all of them do.

    Each piece has a place of its own there, the longest found first: one that is left out is not excused by another
    that holds its words.
    """
    pieces = [((message["content"],), "a part of what the assistant says")]
    pieces += [((message[name],), "a thought of the assistant") for name in _thoughts(message)]
    for call in message.get("tool_calls", ()):
        function = call["function"]
        leaves = [function["name"], *_leaves(function["arguments"])]
        pieces += [(_forms(leaf), "a part of a call") for leaf in leaves]
    text = _squashed(text)
    for forms, what in sorted(pieces, key=lambda one: -max(map(len, one[0]))):
        found = next((form for form in map(_squashed, forms) if form in text), None)
        if found is None:
            return what
        text = text.replace(found, "\0", 1)
    return ""


def _thoughts(message: Message) -> list[str]:
    """The keys of its thoughts, each told once: what is copied under several names is one thought."""
    named = {message[name]: name for name in reversed(THOUGHTS) if isinstance(message.get(name), str)}
    return [*named.values()]


def _leaves(value: Any) -> Iterator[Any]:
    """Keys and values inside of the arguments of a call."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _forms(leaf: Any) -> tuple[str, ...]:
    """How a template may write a value: as it is, or as JSON."""
    return str(leaf), json.dumps(leaf, ensure_ascii=False).strip('"'), json.dumps(leaf).strip('"')


def _squashed(text: str) -> str:
    return "".join(text.split())
