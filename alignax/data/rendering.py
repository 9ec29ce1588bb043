"""A chat template's text of some messages, and the tokens by which it ends the assistant's turns."""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import jinja2

from alignax.data.counts import DataError
from alignax.data.messages import Message
from alignax.data.tokenizer import Tokenizer, added_tokens, control_tokens, eos_id

# what a template raises that adds a list to a text, divides by no turns, or asks for a key or a date that is not there
FAILURES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")  # what a template writes around the words of the assistant
DAY = "26 Jul 2024"  # what Llama 3.1's template falls back on where it cannot know the date
PING, PONG = [{"role": "user", "content": "ping"}], [{"role": "assistant", "content": "pong"}]


def render(tokenizer: Tokenizer, messages: list[Message], options: dict[str, Any], *, ask: bool = False) -> str:
    """The text of the messages; with `ask`, up to where the assistant's next words begin. Raises TemplateError.

    A template that prints today's date prints DAY where it asks for `date_string`, as those of Llama 3 do: the tokens
    of a run then do not depend on when it is. One that asks the clock (SmolLM3's) cannot be told another day.
    """
    with refusals():
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask, **told_of(options))


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


def end_texts(tokenizer: Tokenizer) -> tuple[str, ...]:
    """What ends the assistant's words in a chat, as text: the template's own token, if any, the one of turns that end
    with a call, where that is another (<|eom_id|>), and the tokenizer's."""
    eos_id(tokenizer)  # raises if there is none
    turn_end = end_of_turn(tokenizer)
    ends = tuple(dict.fromkeys(filter(None, (turn_end, tokenizer.eos_token))))
    if turn_end is None:
        return ends
    if (found := called(tokenizer)) is None:
        return ends
    text, start, _ = found
    merely = [token for token in added_tokens(tokenizer) if not token.startswith(("</", "[/"))]  # these close a call
    tokens = (*control_tokens(tokenizer), *merely)
    other = None if first_end(text, start, ends) else last_token(text[start:], tokens)
    return (*ends[:1], other, *ends[1:]) if other else ends


def called(tokenizer: Tokenizer) -> tuple[str, int, bool] | None:
    """The text of a question and a call, where the assistant's turn begins in it, and whether the arguments had to be
    JSON text, as templates want them that put texts together (DeepSeek V3's). None for a template that takes no calls.
    """
    arguments = {"pong": "pong"}
    for as_text in (False, True):
        given = json.dumps(arguments) if as_text else arguments
        call = {"type": "function", "id": "call00000", "function": {"name": "ping", "arguments": given}}
        with contextlib.suppress(jinja2.TemplateError):
            turn = {"role": "assistant", "content": "", "tool_calls": [call]}
            return render(tokenizer, [*PING, turn], {}), len(render(tokenizer, PING, {}, ask=True)), as_text
    return None


def has_marker(tokenizer: Tokenizer) -> bool:
    """Whether the chat template says itself what the assistant's words are."""
    return bool(MARKER.search(tokenizer.get_chat_template()))


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Whatever a template raises, as TemplateError: it is the row that it cannot write."""
    try:
        yield
    except FAILURES as error:
        raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error


def told_of(options: dict[str, Any]) -> dict[str, Any]:
    """What every rendering of a row tells the template: a prompt, its whole row and the key of the cache agree."""
    return {"date_string": DAY} | options


def first_end(text: str, start: int, ends: tuple[str, ...]) -> int | None:
    """The offset behind the first of `ends` at or after `start`."""
    found = [(at, at + len(end)) for end in ends if (at := text.find(end, start)) >= 0]
    return min(found)[1] if found else None


def last_token(text: str, tokens: tuple[str, ...]) -> str | None:
    """The longest of the tokens with which a text ends, white space aside."""
    return max((token for token in tokens if text.rstrip().endswith(token)), key=len, default=None)
