"""What a chat template wrote of a row: whether a turn's words stand in its text, and which kinds of turn it drops."""

import json
from collections.abc import Iterator
from typing import Any

from alignax.data.messages import THOUGHTS, Message

KEY = {"type": "string", "description": "about it"}
TOOL = {"name": "zqxtool", "description": "does it", "parameters": {"type": "object", "properties": {"zqxkey": KEY}}}


def in_other_words(
    messages: list[Message], options: dict[str, Any]
) -> tuple[list[Message], dict[str, Any], dict[str, str]]:
    """The messages and options with words that stand nowhere else, and {word: what it is a part of}.

    A template that writes a turn, a call or the tools has to write these words; thoughts have some as well, and are not
    among what has to be written, since many templates leave out those of earlier turns.
    """
    others, words = [], {}
    for i, message in enumerate(messages):
        one = message | {name: f"zqx{i}thought" for name in THOUGHTS if isinstance(message.get(name), str)}
        if message["content"].strip():
            one["content"] = f"zqx{i}said"
            words[one["content"]] = f"a turn of {message['role']!r}"
        if calls := message.get("tool_calls"):
            name, value = f"zqx{i}name", f"zqx{i}value"
            told = {"key": value}
            functions = [
                {
                    "name": name,
                    "arguments": json.dumps(told) if isinstance(call["function"]["arguments"], str) else told,
                }
                for call in calls
            ]
            one["tool_calls"] = [call | {"function": function} for call, function in zip(calls, functions)]
            words |= dict.fromkeys((name, value), "a call")
        others.append(one)
    if options.get("tools"):
        options = options | {"tools": [{"type": "function", "function": TOOL}]}
        words[TOOL["name"]] = "the tools"
    return others, options, words


def unwritten(message: Message, text: str) -> str:
    """What of a turn's words does not stand in its text, white space aside; "" if all of them do."""
    text = _squashed(text)
    if _squashed(message["content"]) not in text:
        return "a part of what the assistant says"
    if any(_squashed(message[name]) not in text for name in THOUGHTS if isinstance(message.get(name), str)):
        return "a thought of the assistant"
    for call in message.get("tool_calls", ()):
        function = call["function"]
        leaves = [function["name"], *_leaves(function["arguments"])]
        if not all(any(_squashed(form) in text for form in _forms(leaf)) for leaf in leaves):
            return "a part of a call"
    return ""


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
