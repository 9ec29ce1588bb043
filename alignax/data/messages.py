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
from alignax.data.values import finite, is_absent, kind, number, parsed, truth, unpacked

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
ARGUMENTS = ("arguments", "parameters", "args", "input")  # keys of what a call is given
MASKS = ("mask", "masked", "loss_mask")  # keys of which nobody can tell whether true means learnt or left out
MEDIA = ("image", "images", "video", "videos", "audio", "audios")  # columns of what no text model reads
Message = dict[str, Any]
Turns = str | list[Message]  # a text, or messages


def role(message: Any) -> Any:
    """Who says a message, in our names; None where that is not told."""
    if not isinstance(message, dict):
        return None
    speaker = message["from"] if message.get("role") is None and "from" in message else message.get("role")
    return SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else None


def canonical(value: Any, remarks: Said) -> Any:
    """A prompt or a reply in the layout above: a text as it is, messages one by one, or the reason why not.

    Messages may come as JSON text, as tables keep them. What is neither text nor messages comes back as it is.
    `remarks` takes what there is to say of the row.
    """
    value = listed(value)
    if isinstance(value, dict) and role(value) is not None:
        value = [value]
    if not isinstance(value, list):
        return value
    messages = []
    for one in value:
        message = _message(one, remarks)
        if isinstance(message, Refused):
            return message
        messages.append(message)
    return messages


def listed(value: Any) -> Any:
    """The messages that a text is (`values.unpacked`); any other value, other JSON among them, as it is."""
    if not isinstance(value, str) or isinstance(value, Refused) or ("role" not in value and "from" not in value):
        return value
    found = unpacked(value)
    messages = [found] if isinstance(found, dict) else found
    return found if isinstance(messages, list) and messages and all(map(_speaks, messages)) else value


def _speaks(message: Any) -> bool:
    """Whether a value is a message beyond doubt: somebody known says something."""
    return role(message) in ROLES and bool({"content", "value", "tool_calls", "function_call"} & {*message})


def without_nulls(value: Any, remarks: Said) -> Any:
    """The value without the null keys of objects. A table whose rows differ pads them with such, so that one that was
    meant cannot be told from them: both are left out, of every file, and the row is noted."""
    if isinstance(value, dict):
        if any(inner is None for inner in value.values()):
            remarks.notes.add("nulls_left_out")
        return {name: without_nulls(inner, remarks) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner, remarks) for inner in value] if isinstance(value, list) else value


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


def _message(message: Any, remarks: Said) -> Message | Refused:
    if not isinstance(message, dict):
        return Refused("bad_message", f"{kind(message)} in place of a message")
    rest = {
        name: value for name, value in message.items() if value is not None
    }  # of mixed rows every message has all keys
    who, speaker = role(rest), rest.pop("from", None)
    speaker = rest.pop("role", speaker)
    if who not in ROLES:
        return Refused("bad_message", "a message without a role" if speaker is None else f"role {speaker!r}")
    content = _content(rest.pop("content", rest.pop("value", None)), rest, remarks)
    if isinstance(content, Refused):
        return content
    named_calls = [rest.pop(name, None) for name in ("tool_calls", "function_call")]
    calls = next((one for one in named_calls if one and not is_absent(one)), None)
    if speaker == "function_call":
        content, calls = "", content or calls
    calls = _calls(calls, remarks) if calls else []
    if isinstance(calls, Refused):
        return calls
    if content is None and not calls and not any(rest.get(name) for name in THOUGHTS):
        return Refused("bad_message", f"a message of {who!r} without content")
    weighed = _weighed(who, rest, remarks)
    if isinstance(weighed, Refused):
        return weighed
    return {"role": who, "content": content or ""} | ({"tool_calls": calls} if calls else {}) | weighed


def _content(content: Any, rest: Message, remarks: Said) -> str | None | Refused:
    """The text of a message. Parts are joined; one that is a thought goes into `rest` under the first of THOUGHTS."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        return Refused("bad_message", f"content that is {kind(content)}")
    words: list[str] = []
    for part in content:
        if isinstance(part, str):
            words.append(part)
            continue
        if not isinstance(part, dict):
            return Refused("bad_message", f"a part of content that is {kind(part)}")
        name = str(part.get("type") or "text")
        text = next((part[key] for key in (name, "text", "content") if isinstance(part.get(key), str)), None)
        if weights := [key for key in (*WEIGHTS, *MASKS) if part.get(key) is not None]:
            return Refused("turn_weight", f"{weights[0]} = {part[weights[0]]!r} of a part of a message")
        remarks.unread |= {f"content.{key}" for key in part if part[key] is not None} - {
            f"content.{key}" for key in ("type", "text", "content", name)
        }
        if name in ("thinking", *THOUGHTS) and text is not None:
            rest[THOUGHTS[0]] = rest.get(THOUGHTS[0], "") + text
        elif name in ("text", "input_text", "output_text"):
            if text is None:
                return Refused("bad_message", "a part of content without text")
            words.append(text)
        else:
            called = "tool" in name or "function" in name
            return Refused("bad_message" if called else "not_text", f"a part of the type {name!r}")
    return "".join(words)


def _calls(value: Any, remarks: Said) -> list[Message] | Refused:
    """Calls with their arguments as objects."""
    try:
        value = parsed(value) if isinstance(value, str) else value
    except ValueError as error:
        return Refused("bad_call", f"{error}: {str(value)[:80]!r}")
    calls = []
    for call in value if isinstance(value, list) else [] if value is None else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return Refused("bad_call", f"{kind(call)} without a name in place of a call")
        arguments = next((function[key] for key in ARGUMENTS if not is_absent(function.get(key))), {})
        try:
            arguments = parsed(arguments) if isinstance(arguments, str) else finite(arguments)
            arguments = without_nulls({} if arguments is None else arguments, remarks)
        except (ValueError, RecursionError) as error:
            deep = isinstance(error, RecursionError)
            return Refused(
                "bad_call", "arguments nested too deeply" if deep else f"arguments {str(arguments)[:80]!r}: {error}"
            )
        if not isinstance(arguments, dict):
            return Refused("bad_call", f"arguments that are {kind(arguments)}: {str(arguments)[:80]!r}")
        outer = {name: call[name] for name in ("id", "index") if call.get(name) is not None}
        known = {"type", "function", "id", "index", "name", *ARGUMENTS}
        remarks.unread |= {f"tool_calls.{key}" for one in (call, function) for key in one if one[key] is not None} - {
            f"tool_calls.{key}" for key in known
        }
        calls.append({"type": "function", **outer, "function": {"name": function["name"], "arguments": arguments}})
    return calls


def _weighed(who: str, rest: Message, remarks: Said) -> Message | Refused:
    """`rest` without the keys that say how much a turn counts, and with "learnt": False where it does not."""
    out = {name: value for name, value in rest.items() if name not in (*WEIGHTS, *MASKS, "learnt")}
    learnt = rest.get("learnt", True)
    for name in (*WEIGHTS, *MASKS):
        if is_absent(rest.get(name)):
            continue
        counts = truth(rest[name])
        if name not in MASKS and counts is False and number(rest[name]) != -1:
            learnt = False
        elif who != "assistant":  # it is learnt under train_on = 'all' alone, and then with all others
            remarks.unread |= {f"{name} of {who} turns"}
        elif name in MASKS or counts is not True:
            return Refused("turn_weight", f"{name} = {rest[name]!r}")
    return out if learnt else out | {"learnt": False}
