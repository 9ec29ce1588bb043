"""A chat template at work on rows: where in its text the policy speaks, how turns end, and what it leaves out.

Everything here is about text: which tokens a span holds is for `templates.py`, which asks the tokenizer for those up to
each offset. Ids are never searched for, since pad, end and unknown may share one.
"""

import contextlib
import functools
import re
from typing import Any, NamedTuple

import jinja2

from alignax.data.counts import REASONS, DataError, Refused
from alignax.data.dialogue import Prompt, messages_of
from alignax.data.messages import THOUGHTS, Message, Turns, is_learnt, with_text_calls
from alignax.data.rendering import (
    PING,
    PONG,
    called,
    end_of_turn,
    end_texts,
    first_end,
    has_marker,
    last_token,
    refusals,
    render,
    told_of,
)
from alignax.data.tokenizer import Tokenizer, control_tokens
from alignax.data.written import in_other_words, unwritten

OPENED = re.compile(r"([<\[])([\w|]+)([>\]])\s*$")  # how a thought begins that the prompt opens: <think>, [THINK]
READ = {"role", "content", "tool_calls", "learnt"}  # keys of a message whose words are looked for in the text


class Turn(NamedTuple):
    """The words of one assistant turn in a text, with the end behind them."""

    start: int
    stop: int
    closed: bool = True  # by an end; a template may write none
    learnt: bool = True


Found = tuple[str, list[Turn]] | str  # a text with its turns, or the reason (a key of REASONS) why there are none


class Chat:
    """The chat template of a tokenizer, for the rows of one data set; it remembers what it was asked about their kinds.

    Args:
      ends: `end_texts`.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.ends = tokenizer, end_texts(tokenizer)
        self.ends_turns = end_of_turn(tokenizer) is not None
        self.control = control_tokens(tokenizer)
        self.words = {*re.findall(r"\w+", tokenizer.get_chat_template())}
        self.text_calls = (called(tokenizer) or ("", 0, False))[2]
        self._kinds: dict[str, tuple[str, set[str]]] = {}
        self._opened: dict[str, tuple[str, str] | None] = {}

    def asked(self, prompt: Prompt) -> str | Refused:
        """The text of a prompt, "" where nothing is asked; or why the template does not write it."""
        if prompt.whole:
            return ""
        messages = self._messages(prompt.said, "user", prompt.options)
        try:
            text = render(self.tokenizer, messages, prompt.options, ask=True)
        except jinja2.TemplateError as error:
            return Refused("template_refused", str(error))
        lost = self.left_out(messages, prompt.options)
        return Refused("not_written", lost) if lost else text

    def turns(self, prompt: Prompt, reply: Turns) -> Found:
        """The text up to the end of the reply, and its assistant turns, each up to and with its end."""
        before = [] if prompt.whole else self._messages(prompt.said, "user", prompt.options)
        after = self._messages(reply, "assistant", prompt.options)
        learnt = [is_learnt(one) for one in messages_of(reply, "assistant") if one["role"] == "assistant"]
        several = prompt.whole or len(after) > 1  # one turn begins where the prompt ends, and needs no mark
        try:
            write = _marked if several and has_marker(self.tokenizer) else _prefixed
            found = write(self, before, after, prompt.options)
        except jinja2.TemplateError as error:
            return Refused("template_refused", str(error))
        if isinstance(found, str):
            return found
        text, spans = found
        if lost := self.left_out([*before, *after], prompt.options):
            return Refused("not_written", lost)
        opened = (self.opened(prompt.options) or ("", ""))[0]
        spoken = [message for message in after if message["role"] == "assistant"]
        for span, message, counts in zip(spans, spoken, learnt, strict=True):
            if counts and (lost := unwritten(message, opened + text[span.start : span.stop])):
                return Refused("not_written", lost)
        return text, [span._replace(learnt=counts) for span, counts in zip(spans, learnt)]

    def unread(self, messages: list[Message], options: dict[str, Any]) -> set[str]:
        """The keys of messages, and the arguments of the template, that it never asks for."""
        names = {f"messages.{name}" for name in self._kind(messages, options)[1]} if messages else set()
        return names | {f"chat_template_kwargs.{name}" for name in options if name not in {"tools"} | self.words}

    def left_out(self, messages: list[Message], options: dict[str, Any]) -> str:
        """What the template writes nothing of, in messages of these kinds: a turn, a call, the tools; "" if of nothing.

        Found by writing them once with other words in place of theirs. The thoughts of turns are not asked for here:
        many templates leave out those of earlier ones.
        """
        return self._kind(messages, options)[0]

    def _kind(self, messages: list[Message], options: dict[str, Any]) -> tuple[str, set[str]]:
        """What the template leaves out of messages of these kinds, and which of their keys change nothing."""
        shape = [(one["role"], bool(one["content"]), len(one.get("tool_calls", ())), sorted(one)) for one in messages]
        key = repr((shape, "tools" in options, {name: x for name, x in options.items() if name != "tools"}))
        if key in self._kinds:
            return self._kinds[key]
        others, asked, words = in_other_words(messages, options)
        ask = messages[-1]["role"] != "assistant"
        write = lambda dialogue: render(self.tokenizer, dialogue, asked, ask=ask)  # noqa: E731
        names = {name for one in messages for name in one} - READ
        thoughts = names & {*THOUGHTS}  # transformers hands each on under all of their names
        unread = {name for name in names - thoughts if name not in self.words}
        lost = ""
        with contextlib.suppress(jinja2.TemplateError):  # it wants other words: nothing can be told by these
            text = write(others)
            lost = next((what for word, what in words.items() if word not in text), "")
            for group in [{name} for name in names - unread - thoughts] + [thoughts] * bool(thoughts):
                if write([{k: x for k, x in one.items() if k not in group} for one in others]) == text:
                    unread |= group
        self._kinds[key] = lost, unread
        return self._kinds[key]

    def opened(self, options: dict[str, Any]) -> tuple[str, str] | None:
        """How a thought begins that the prompt opens already, and how it ends; None where it opens none."""
        key = repr({name: value for name, value in options.items() if name != "tools"})
        if key not in self._opened:
            try:
                tag = OPENED.search(render(self.tokenizer, PING, options, ask=True))
            except jinja2.TemplateError:
                tag = None
            begin, name, end = tag.groups() if tag else ("", "", "")
            token = tag is not None and tag[0].strip() not in self.control  # <|assistant|> opens a turn, and no thought
            self._opened[key] = (f"{begin}{name}{end}", f"{begin}/{name}{end}") if token else None
        return self._opened[key]

    def _messages(self, turns: Turns, role: str, options: dict[str, Any]) -> list[Message]:
        """The messages, as the template gets them. A reply that ends a thought which it does not begin was said after a
        prompt that opens it: it gets its beginning, by which the template knows the thought."""
        messages = [{name: x for name, x in one.items() if name != "learnt"} for one in messages_of(turns, role)]
        if self.text_calls:
            messages = [with_text_calls(one) if "tool_calls" in one else one for one in messages]
        if (tags := self.opened(options)) is None:
            return messages
        begin, end = tags
        orphan = lambda one: one["role"] == "assistant" and end in one["content"] and begin not in one["content"]  # noqa: E731
        return [one | {"content": f"{begin}\n{one['content']}"} if orphan(one) else one for one in messages]

    def stop(self, text: str, start: int) -> tuple[int, bool]:
        """Where a turn that begins at `start` stops, behind its end, and whether it has one: the first of `ends`, or
        else the control token by which the text ends."""
        if known := first_end(text, start, self.ends):
            return known, True
        end = last_token(text[start:], self.control) if self.ends_turns else None
        return (len(text.rstrip()), True) if end else (len(text), False)


def check_turns(tokenizer: Tokenizer) -> None:
    """Raises DataError if the assistant's turns cannot be told from the others in a dialogue of two."""
    found = Chat(tokenizer).turns(Prompt("", whole=True), PING + PONG + PING + PONG)
    if found == "unmarked_turns":
        raise DataError(f"train_on = 'assistant': {': '.join(REASONS['unmarked_turns'])}")
    if isinstance(found, str):
        raise DataError(
            f"train_on = 'assistant' and a chat template without an assistant marker ({found}): the text up to an "
            "assistant turn is not how the whole dialogue begins, because the template writes earlier turns in another "
            "way; write {% generation %} ... {% endgeneration %} around the assistant's words in the template, or use "
            "train_on = 'completion'"
        )


def _prefixed(chat: Chat, before: list[Message], after: list[Message], options: dict) -> Found:
    """Each assistant turn lies between two renderings of the dialogue's beginning: as a question, and with its turn."""
    write = functools.partial(render, chat.tokenizer)
    whole, turns = write(before + after, options), []
    for i, message in enumerate(after):
        if message["role"] != "assistant":
            continue
        history = before + after[:i]
        if not history:  # nothing to render without a turn: where the assistant's words begin cannot be seen
            return "bad_turns"
        start = write(history, options, ask=True)
        through = whole if i == len(after) - 1 else write([*history, message], options)
        stop, closed = chat.stop(through, len(start))
        if history == before and not whole.startswith(start):
            return "not_prefix"
        if not through.startswith(start) or whole[:stop] != through[:stop]:
            return "rewritten_turns"
        turns.append(Turn(len(start), stop, closed))
    return whole, turns


def _marked(chat: Chat, before: list[Message], after: list[Message], options: dict) -> Found:
    """The spans that the template marks behind the prompt, one for each assistant turn."""
    from transformers.utils.chat_template_utils import render_jinja_template

    given = chat.tokenizer.special_tokens_map | told_of(options)
    tools = given.pop("tools", None)
    template = chat.tokenizer.get_chat_template(tools=tools)
    with refusals():
        rendered: Any = render_jinja_template(
            [before + after], tools, chat_template=template, return_assistant_tokens_mask=True, **given
        )
    (text,), (marks,) = rendered
    asked = len(render(chat.tokenizer, before, options, ask=True)) if before else 0
    turns = [_closed(chat, text, start, stop) for start, stop in _joined(marks) if stop > max(asked, start)]
    spoken = sum(message["role"] == "assistant" for message in after)
    return (text, turns) if len(turns) == spoken else "unmarked_turns"  # which span is whose cannot be told


def _joined(marks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The marked spans; those that touch are one, of a template that marks words and end apart."""
    out: list[tuple[int, int]] = []
    for start, stop in marks:
        if out and out[-1][1] == start:
            start = out.pop()[0]
        out.append((start, stop))
    return out


def _closed(chat: Chat, text: str, start: int, stop: int) -> Turn:
    """A marked span up to its end, in it or right behind it: it belongs to the turn."""
    inside, closed = chat.stop(text[:stop], start)
    if closed:
        return Turn(start, inside)
    behind = len(text) - len(text[stop:].lstrip())
    ends = [*chat.ends, *sorted(chat.control, key=len, reverse=True)] if chat.ends_turns else chat.ends
    end = next((behind + len(end) for end in ends if text.startswith(end, behind)), None)
    return Turn(start, end or stop, end is not None)
