"""Rows as the encoders read them: a prompt, what else the template is told, the replies; and what can be wrong there.

A prompt or a reply is a text or a list of messages; a text becomes one turn, of the user or of the assistant.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from alignax.data.counts import DataError, Refused, Said
from alignax.data.messages import THOUGHTS, Message, Turns, canonical, texts, without_nulls
from alignax.data.reshape import Row
from alignax.data.values import is_absent, kind, parsed, unpacked

RESERVED = (  # what `apply_chat_template` takes for itself, and what it tells a template besides
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "conversations", "max_length",
    "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens",
    "tokenize", "tokenizer_kwargs", "tools", "truncation",
)  # fmt: skip
SAID = ("prompt", "completion", "chosen", "rejected", "messages")  # columns of text or messages,
LISTS = ("replies", "completions")  # of several of them,
PACKED = (
    *LISTS,
    "scores",
    "ranks",
    "steps",
    "verdicts",
    "labels",
    "ratings",
    "history",
    "chat_template_kwargs",
)  # lists


class Prompt(NamedTuple):
    """What is asked, and what else the template is told; `whole`: nothing is asked, the reply is all there is."""

    said: Any  # Turns, once `fault` has seen it
    options: dict[str, Any] = {}  # `tools` and arguments of the template
    whole: bool = False


def read_rows(rows: Iterable[Row]) -> tuple[list[Row], list[Said]]:
    """The rows with all their messages and tools in one layout (`messages.py`), and what is to be said of each.

    The one gate to every encoder. Messages that cannot be read are, in their place, the reason. Raises DataError, with
    the row, if `tools` or `chat_template_kwargs` is of the wrong type.
    """
    remarks, out = [], []
    for row in rows:
        remarks.append(Said(columns=", ".join(sorted(name for name, value in row.items() if value is not None))))
        out.append(read_row(row, remarks[-1]))
    return out, remarks


def read_row(row: Row, remarks: Said) -> Row:
    """One row of `read_rows`."""
    changed: Row = {name: unpacked(row[name]) for name in PACKED if isinstance(row.get(name), str)}
    changed |= {name: canonical(row[name], remarks) for name in SAID if row.get(name) is not None}
    for name in LISTS:
        if isinstance(many := changed.get(name, row.get(name)), (list, tuple)):
            changed[name] = [canonical(one, remarks) for one in many]
    if row.get("tools") is not None:
        changed["tools"] = without_nulls(_tools(row), remarks)
    return row | changed if any(value is not row[name] for name, value in changed.items()) else row


def prompt_of(row: Row) -> Prompt:
    """The prompt of a row of `read_rows`, with its `tools` and `chat_template_kwargs`."""
    options = row.get("chat_template_kwargs") or {}
    if not isinstance(options, dict) or set(options) & set(RESERVED):
        raise DataError(
            f"{where('chat_template_kwargs', options, row)}: expected a dict of the template's own arguments, without "
            f"{', '.join(RESERVED)}"
        )
    known = {name: value for name, value in options.items() if value is not None}
    return Prompt(row.get("prompt"), known | ({"tools": row["tools"]} if row.get("tools") else {}))


def _tools(row: Row) -> list[dict]:
    """The schemas of a row, which may be JSON text, all together or each."""
    try:
        tools = row["tools"]
        tools = unpacked(tools) if isinstance(tools, str) and not is_absent(tools) else tools
        tools = [] if is_absent(tools) else tools
        tools = (
            [parsed(tool) if isinstance(tool, str) else tool for tool in tools] if isinstance(tools, list) else tools
        )
    except ValueError as error:
        raise DataError(f"{where('tools', row['tools'], row)}: no JSON ({error}); expected a list") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{where('tools', row['tools'], row)}: expected a list of JSON schemas")
    return tools


def where(field: str, value: Any, row: Row) -> str:
    """A field, its value and its row, as an error names them."""
    return f"field {field!r} = {repr(value)[:80]} of the row {str(row.get('prompt'))[:80]!r}"


def messages_of(turns: Turns, role: str) -> list[Message]:
    """The messages; a text is one of `role`."""
    return [{"role": role, "content": turns}] if isinstance(turns, str) else turns


def fault(prompt: Prompt, replies: Sequence[Any], template: str, forbidden: Callable[[str], bool]) -> str | None:
    """Why a prompt and its replies cannot be encoded: a key of REASONS, or None. `forbidden` asks of a text whether it
    spells a control token."""
    parts = [*replies] if prompt.whole else [prompt.said, *replies]
    if refused := next((one for one in parts if isinstance(one, Refused)), None):
        return refused
    if wrong := [one for one in parts if not isinstance(one, (str, list))]:
        return "missing_field" if wrong[0] is None else Refused("missing_field", f"found {kind(wrong[0])}")
    if prompt.said == [] and not prompt.whole:
        return "empty_prompt"
    lists = [one for one in parts if isinstance(one, list)]
    if (lists or prompt.options) and template == "plain":  # it has no place for tools or arguments either
        return "needs_chat"
    if any(map(_is_empty, replies)):
        return "empty_reply"
    if not _in_turn(prompt, [one for one in replies if isinstance(one, list)]):
        return Refused("bad_turns", f"found {', '.join(one['role'] for many in lists for one in many)}")
    spelt = next((text for text in texts([parts, prompt.options]) if forbidden(text)), None)
    return None if spelt is None else Refused("special_token", repr(spelt[:80]))


def _is_empty(reply: Turns) -> bool:
    """A reply without words, or with an assistant turn that has neither words nor calls nor thoughts."""
    spoken = [message for message in messages_of(reply, "assistant") if message["role"] == "assistant"]
    words = [[one["content"], *(one.get(name) for name in THOUGHTS)] for one in spoken]
    filled = [any(str(x or "").strip() for x in values) or one.get("tool_calls") for values, one in zip(words, spoken)]
    return not reply or not all(filled)


def _in_turn(prompt: Prompt, replies: list[list[Message]]) -> bool:
    """The prompt leaves the word to the assistant, who has the last one, and in a reply the first as well."""
    asked = prompt.whole or isinstance(prompt.said, str) or prompt.said[-1]["role"] != "assistant"
    first = prompt.whole or all(reply[0]["role"] == "assistant" for reply in replies)
    return asked and first and all(reply[-1]["role"] == "assistant" for reply in replies)
