"""Dialogues: rows of messages, what can be wrong with them, and where in the rendered text the policy speaks.

A prompt or a reply is a text or a list of messages {"role", "content", "tool_calls", ...}. A text becomes one turn, of
the user or of the assistant. Everything here is about text: which tokens a span holds is for `templates.py`, which asks
the tokenizer for those up to each offset. Ids are never searched for, since pad, end and unknown may share one.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jinja2

from alignax.data.counts import REASONS, DataError, Refused
from alignax.data.tokenizer import Tokenizer, control_tokens

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
RESERVED = (  # what `apply_chat_template` takes for itself, and what it tells a template besides
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "conversations", "max_length",
    "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "sanitize_control_tokens",
    "tokenize", "tokenizer_kwargs", "tools", "truncation",
)  # fmt: skip
# what a template raises that adds a list to a text, divides by no turns, or asks for a key or a date that is not there
FAILURES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")  # what a template writes around the words of the assistant
DAY = "26 Jul 2024"  # what Llama 3.1's template falls back on where it cannot know the date
PING, PONG = [{"role": "user", "content": "ping"}], [{"role": "assistant", "content": "pong"}]
Said = str | list[dict]
Span = tuple[int, int]  # of a text: begin, end


class Prompt(NamedTuple):
    """What is asked, and what else the template is told; `whole`: nothing is asked, the reply is all there is."""

    said: Any  # Said, once `fault` has seen it
    options: dict[str, Any] = {}  # `tools` and arguments of the template
    whole: bool = False


def prompt_of(row: dict[str, Any]) -> Prompt:
    """The prompt of a row with its `tools` (schemas, or JSON text of them) and `chat_template_kwargs`.

    Raises DataError, with the row, if one of these is of the wrong type.
    """
    tools, options = row.get("tools"), row.get("chat_template_kwargs") or {}
    if isinstance(tools, str):
        try:
            tools = json.loads(tools or "[]")
        except json.JSONDecodeError as error:
            raise DataError(f"{where('tools', row['tools'], row)}: no JSON ({error}); expected a list") from error
    if not isinstance(tools or [], list) or not all(isinstance(tool, dict) for tool in tools or []):
        raise DataError(f"{where('tools', row['tools'], row)}: expected a list of JSON schemas")
    if not isinstance(options, dict) or set(options) & set(RESERVED):
        raise DataError(
            f"{where('chat_template_kwargs', options, row)}: expected a dict of the template's own arguments, without "
            f"{', '.join(RESERVED)}"
        )
    known = {name: value for name, value in options.items() if value is not None}
    return Prompt(row.get("prompt"), known | ({"tools": tools} if tools else {}))


def where(field: str, value: Any, row: dict[str, Any]) -> str:
    """A field, its value and its row, as an error names them."""
    return f"field {field!r} = {repr(value)[:80]} of the row {str(row.get('prompt'))[:80]!r}"


def messages_of(said: Said, role: str) -> list[dict]:
    """The messages; a text is one of `role`. Null keys, which files of mixed rows are full of, are left out."""
    if isinstance(said, str):
        return [{"role": role, "content": said}]
    return [{name: value for name, value in message.items() if value is not None} for message in said]


def fault(prompt: Prompt, replies: Sequence[Any], template: str, forbidden: tuple[str, ...]) -> str | None:
    """Why a prompt and its replies cannot be encoded: a key of REASONS, or None."""
    said = [*replies] if prompt.whole else [prompt.said, *replies]
    if not all(isinstance(one, (str, list)) for one in said):
        return "missing_field"
    if prompt.said == [] and not prompt.whole:
        return "empty_prompt"
    lists = [one for one in said if isinstance(one, list)]
    if (lists or prompt.options) and template == "plain":  # it has no place for tools or arguments either
        return "needs_chat"
    if not all(_is_message(message) for one in lists for message in one):
        return "bad_message"
    if any(map(_is_empty, replies)):
        return "empty_reply"
    if not _in_turn(prompt, [one for one in replies if isinstance(one, list)]):
        return "bad_turns"
    return (
        "special_token"
        if any(token in text for text in _texts([said, prompt.options]) for token in forbidden)
        else None
    )


def render(tokenizer: Tokenizer, messages: list[dict], options: dict[str, Any], *, ask: bool = False) -> str:
    """The text of the messages; with `ask`, up to where the assistant's next words begin. Raises TemplateError.

    A template that prints today's date prints DAY where it asks for `date_string`, as those of Llama 3 do: the tokens
    of a run then do not depend on when it is. One that asks the clock (SmolLM3's) cannot be told another day.
    """
    with _refusals():
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask, **_told(options))


def _told(options: dict[str, Any]) -> dict[str, Any]:
    """What every rendering of a row tells the template: a prompt, its whole row and the key of the cache agree."""
    return {"date_string": DAY} | options


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Whatever a template raises, as TemplateError: it is the row that it cannot write."""
    try:
        yield
    except FAILURES as error:
        raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error


def end_of_turn(tokenizer: Tokenizer) -> str | None:
    """The token by which the chat template ends an assistant turn (<|im_end|>, <end_of_turn>, ...), None if by none.

    It is what follows the assistant's words in a rendered dialogue, and need not be the tokenizer's end of sequence.
    Raises DataError if the template cannot be rendered.
    """
    try:
        _, found, tail = render(tokenizer, PING + PONG, {}).rpartition(PONG[0]["content"])
    except jinja2.TemplateError as error:
        raise DataError(f"the chat template fails on one question and answer ({error}): mend it") from error
    if not found:
        raise DataError("the chat template leaves out what the assistant says: mend it, or use template 'plain'")
    added = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(control_tokens(tokenizer))
    return max((token for token in added if tail.lstrip().startswith(token)), key=len, default=None)


def turns(tokenizer: Tokenizer, prompt: Prompt, reply: Said, ends: tuple[str, ...]) -> tuple[str, list[Span]] | str:
    """The text up to the end of the reply, and the spans of its assistant turns, each up to and with the first of
    `ends`; or the reason, a key of REASONS, why there are none."""
    before = [] if prompt.whole else messages_of(prompt.said, "user")
    after = messages_of(reply, "assistant")
    several = prompt.whole or len(after) > 1  # one turn begins where the prompt ends, and needs no mark
    try:
        found = _marked if several and has_marker(tokenizer) else _prefixed
        return found(tokenizer, before, after, prompt.options, ends)
    except jinja2.TemplateError as error:
        return Refused("template_refused", str(error))


def has_marker(tokenizer: Tokenizer) -> bool:
    """Whether the chat template says itself what the assistant's words are."""
    return bool(MARKER.search(tokenizer.get_chat_template()))


def check_turns(tokenizer: Tokenizer, ends: tuple[str, ...]) -> None:
    """Raises DataError if the assistant's turns cannot be told from the others in a dialogue of two."""
    found = turns(tokenizer, Prompt("", whole=True), PING + PONG + PING + PONG, ends)
    if found == "unmarked_turns":
        raise DataError(f"train_on = 'assistant': {': '.join(REASONS['unmarked_turns'])}")
    if isinstance(found, str):
        raise DataError(
            f"train_on = 'assistant' and a chat template without an assistant marker ({found}): the text up to an "
            "assistant turn is not how the whole dialogue begins, because the template writes earlier turns in another "
            "way; write {% generation %} ... {% endgeneration %} around the assistant's words in the template, or use "
            "train_on = 'completion'"
        )


def _prefixed(
    tokenizer: Tokenizer, before: list[dict], after: list[dict], options: dict, ends: tuple[str, ...]
) -> tuple[str, list[Span]] | str:
    """Each assistant turn lies between two renderings of the dialogue's beginning: as a question, and with its turn."""
    whole, spans = render(tokenizer, before + after, options), []
    for i, message in enumerate(after):
        if message["role"] != "assistant":
            continue
        told = before + after[:i]
        if not told:  # nothing to render without a turn: where the assistant's words begin cannot be seen
            return "bad_turns"
        start = render(tokenizer, told, options, ask=True)
        through = whole if i == len(after) - 1 else render(tokenizer, [*told, message], options)
        stop = _first_end(through, len(start), ends) or len(through)
        if told == before and not whole.startswith(start):
            return "not_prefix"
        if not through.startswith(start) or whole[:stop] != through[:stop]:
            return "rewritten_turns"
        spans.append((len(start), stop))
    return whole, spans


def _marked(
    tokenizer: Tokenizer, before: list[dict], after: list[dict], options: dict, ends: tuple[str, ...]
) -> tuple[str, list[Span]] | str:
    """The spans that the template marks behind the prompt, one for each assistant turn."""
    from transformers.utils.chat_template_utils import render_jinja_template

    given = tokenizer.special_tokens_map | _told(options)
    tools = given.pop("tools", None)
    template = tokenizer.get_chat_template(tools=tools)
    with _refusals():
        rendered: Any = render_jinja_template(
            [before + after], tools, chat_template=template, return_assistant_tokens_mask=True, **given
        )
    (text,), (marks,) = rendered
    asked = len(render(tokenizer, before, options, ask=True)) if before else 0
    spans = [_closed(text, span, ends) for span in marks if span[1] > max(asked, span[0])]
    spoken = sum(message["role"] == "assistant" for message in after)
    return (text, spans) if len(spans) == spoken else "unmarked_turns"  # which span is whose cannot be told


def _closed(text: str, span: Span, ends: tuple[str, ...]) -> Span:
    """A span up to the first of `ends` in it, or with the one that stands right behind it: it belongs to the turn."""
    start, stop = span
    behind = len(text) - len(text[stop:].lstrip())
    closed = next((behind + len(end) for end in ends if text.startswith(end, behind)), stop)
    return start, _first_end(text[:stop], start, ends) or closed


def _first_end(text: str, start: int, ends: tuple[str, ...]) -> int | None:
    """The offset behind the first of `ends` at or after `start`."""
    found = [(at, at + len(end)) for end in ends if (at := text.find(end, start)) >= 0]
    return min(found)[1] if found else None


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        return False
    content = message.get("content")
    return isinstance(content, str) or (content is None and bool(message.get("tool_calls")))


def _is_empty(reply: Said) -> bool:
    """A reply without words, or with an assistant turn that has neither words nor calls."""
    spoken = [message for message in messages_of(reply, "assistant") if message["role"] == "assistant"]
    return not reply or any(not (one.get("content") or "").strip() and not one.get("tool_calls") for one in spoken)


def _in_turn(prompt: Prompt, replies: list[list[dict]]) -> bool:
    """The prompt leaves the word to the assistant, who has the last one, and in a reply the first as well."""
    asked = prompt.whole or isinstance(prompt.said, str) or prompt.said[-1]["role"] != "assistant"
    first = prompt.whole or all(reply[0]["role"] == "assistant" for reply in replies)
    return asked and first and all(reply[-1]["role"] == "assistant" for reply in replies)


def _texts(value: Any) -> Iterator[str]:
    """Every text inside of messages, arguments of calls included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
