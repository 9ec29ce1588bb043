"""One layout for messages: whatever way a data set writes turns, calls, parts and weights, the encoders see this one.

    {"role", "content": text, "tool_calls": [{"type": "function", "function": {"name", "arguments": object}, ...}], ...}

and "learnt": False on a turn of the assistant that is not to be learnt. Read as such are ShareGPT's {"from", "value"}
with calls and observations, one message in place of a list, lists of parts, OpenAI's older `function_call`, calls
without their wrapper, arguments and lists as JSON text, and weights of 0. What cannot be read comes back as the reason.
"""

import json
from collections.abc import Iterator
from typing import Any

from alignax.data.counts import Refused, Said
from alignax.data.values import is_absent, kind, parsed, truth

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
SPEAKERS = {  # ShareGPT's names for our roles; others are the same
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "function_call": "assistant", "observation": "tool",
}  # fmt: skip
THOUGHTS = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "thought",
)  # keys of what the assistant thinks before it speaks
WEIGHTS = (
    "weight",
    "train",
    "training",
    "trainable",
    "loss",
    "loss_weight",
)  # keys by which a turn counts, or does not
MASKS = ("mask", "masked", "loss_mask")  # keys of which nobody can tell whether true means learnt or left out
MEDIA = ("image", "images", "video", "videos", "audio", "audios")  # columns of what no text model reads
Message = dict[str, Any]
Turns = str | list[Message]  # a text, or messages


def role(message: Any) -> Any:
    """Who says a message, in our names; None where that is not told."""
    told = message.get("role", message.get("from")) if isinstance(message, dict) else None
    return SPEAKERS.get(told, told) if isinstance(told, str) else None


def canonical(told: Any, said: Said) -> Any:
    """A prompt or a reply in the layout above: a text as it is, messages one by one, or the reason why not.

    What is neither text nor messages comes back as it is. `said` hears what has to be told of the row.
    """
    if isinstance(told, dict) and role(told) is not None:
        told = [told]
    if not isinstance(told, list):
        return told
    messages = []
    for one in told:
        message = _message(one, said)
        if isinstance(message, Refused):
            return message
        messages.append(message)
    return messages


def listed(value: Any) -> Any:
    """The list that JSON text of one says, as tables keep lists of messages; any other value as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = parsed(value)
        except ValueError:
            return value
        return found if isinstance(found, list) and all(isinstance(one, dict) for one in found) else value
    return value


def without_nulls(value: Any, said: Said) -> Any:
    """The value without the null keys of objects. A table whose rows differ pads them with such, so that one that was
    meant cannot be told from them: both are left out, of every file, and the row is noted."""
    if isinstance(value, dict):
        if any(inner is None for inner in value.values()):
            said.notes.add("nulls_left_out")
        return {name: without_nulls(inner, said) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner, said) for inner in value] if isinstance(value, list) else value


def texts(value: Any) -> Iterator[str]:
    """Every text inside of messages and schemas: values, and the names of keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield str(name)
            yield from texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from texts(inner)


def is_learnt(message: Message) -> bool:
    """Whether a turn of the assistant is one to learn from, as far as the row says."""
    return message.get("learnt", True)


def with_text_calls(message: Message) -> Message:
    """The message with the arguments of its calls as JSON text, for a template that takes no objects."""
    calls = [
        call
        | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}}
        for call in message["tool_calls"]
    ]
    return message | {"tool_calls": calls}


def _message(told: Any, said: Said) -> Message | Refused:
    if not isinstance(told, dict):
        return Refused("bad_message", f"{kind(told)} in place of a message")
    rest = {
        name: value for name, value in told.items() if value is not None
    }  # of mixed rows every message has all keys
    who, speaker = role(rest), rest.pop("from", None)
    speaker = rest.pop("role", speaker)
    if who not in ROLES:
        return Refused("bad_message", "a message without a role" if speaker is None else f"role {speaker!r}")
    content = _content(rest.pop("content", rest.pop("value", None)), rest)
    if isinstance(content, Refused):
        return content
    calls = rest.pop("tool_calls", None) or rest.pop("function_call", None)
    if speaker == "function_call":
        content, calls = "", content or calls
    calls = _calls(calls, said) if calls else []
    if isinstance(calls, Refused):
        return calls
    if content is None and not calls and not any(rest.get(name) for name in THOUGHTS):
        return Refused("bad_message", f"a message of {who!r} without content")
    weighed = _weighed(who, rest, said)
    if isinstance(weighed, Refused):
        return weighed
    return {"role": who, "content": content or ""} | ({"tool_calls": calls} if calls else {}) | weighed


def _content(told: Any, rest: Message) -> str | None | Refused:
    """The text of a message. Parts are joined; one that is a thought goes into `rest` under the first of THOUGHTS."""
    if told is None or isinstance(told, str):
        return told
    if not isinstance(told, list):
        return Refused("bad_message", f"content that is {kind(told)}")
    words: list[str] = []
    for part in told:
        name = part.get("type", "text") if isinstance(part, dict) else "text"
        text = part if isinstance(part, str) else part.get(name, part.get("text")) if isinstance(part, dict) else None
        if name in ("thinking", *THOUGHTS) and isinstance(text, str):
            rest[THOUGHTS[0]] = rest.get(THOUGHTS[0], "") + text
        elif name in ("text", "input_text", "output_text") and isinstance(text, str):
            words.append(text)
        elif name in ("text", "input_text", "output_text"):
            return Refused("bad_message", f"a part of content that is {kind(part)} without text")
        else:
            call = "tool" in str(name) or "function" in str(name)
            return Refused("bad_message" if call else "not_text", f"a part of the type {name!r}")
    return "".join(words)


def _calls(told: Any, said: Said) -> list[Message] | Refused:
    """Calls with their arguments as objects."""
    if isinstance(told, str):
        try:
            told = parsed(told)
        except ValueError as error:
            return Refused("bad_call", f"{error}: {told[:80]!r}")
    calls = []
    for call in told if isinstance(told, list) else [told]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return Refused("bad_call", f"{kind(call)} without a name in place of a call")
        arguments = function.get("arguments", function.get("parameters"))
        if isinstance(arguments, str):
            try:
                arguments = parsed(arguments)
            except ValueError as error:
                return Refused("bad_call", f"arguments {arguments[:80]!r}: {error}")
        if not isinstance(arguments, dict | None):
            return Refused("bad_call", f"arguments that are {kind(arguments)}: {str(arguments)[:80]!r}")
        outer = {name: call[name] for name in ("id", "index") if call.get(name) is not None}
        made = {"name": function["name"], "arguments": without_nulls(arguments or {}, said)}
        calls.append({"type": "function", **outer, "function": made})
    return calls


def _weighed(who: str, rest: Message, said: Said) -> Message | Refused:
    """`rest` without the keys that say how much a turn counts, and with "learnt": False where it does not."""
    out = {name: value for name, value in rest.items() if name not in (*WEIGHTS, *MASKS, "learnt")}
    learnt = rest.get("learnt", True)
    for name in (*WEIGHTS, *MASKS):
        if is_absent(rest.get(name)):
            continue
        counts = truth(rest[name])
        if who != "assistant":  # it is never learnt
            said.unread |= {f"{name} of {who} turns"} if counts or counts is None else set()
        elif name in MASKS or counts is None or rest[name] == -1:
            return Refused("turn_weight", f"{name} = {rest[name]!r}")
        else:
            learnt = learnt and counts
    return out if learnt else out | {"learnt": False}
