"""What an environment says, as the ids that come between two turns of the policy."""

import re

import jinja2

from alignax.data.boundary import Ids, text_of, tokenize
from alignax.data.counts import DataError
from alignax.data.messages import Message
from alignax.data.rendering import PING, PONG, called, end_texts, first_end, render
from alignax.data.templates import forbidden_tokens
from alignax.data.tokenizer import Tokenizer, control_tokens
from alignax.envs.protocol import Observation

CALL = "call00000"  # an id of nine letters, as Mistral's templates want
NOTE = " [cut]"  # at the end of what is too long
CHARACTERS = 64  # of a token at most: more than that of a text nobody has to tokenise to cut it


class Observer:
    """Observations as ids, under a tokenizer and a template.

    In a chat it is what the template writes after the end of an assistant's turn: the messages, and the words with
    which the assistant's next turn begins. That does not depend on what was said before, and is found by writing the
    messages after a turn of one word, as a template may write an earlier turn otherwise than it was sampled. Messages
    of tools are the user's where a template takes none. Under "plain" the text stands as it is.

    Control tokens that an observation spells lose their first character: it could else end its turn, and forge another.

    Args:
      most: tokens of an observation's own text; what is longer is cut, with a note.
    """

    def __init__(self, tokenizer: Tokenizer, template: str, most: int):
        self.tokenizer, self.template, self.most = tokenizer, template, most
        self.spells = forbidden_tokens(tokenizer, template)
        self.ends = end_texts(tokenizer) if template == "chat" else ()
        self.no_arguments = "{}" if template == "chat" and (called(tokenizer) or ("", 0, False))[2] else {}
        tokens = sorted({*control_tokens(tokenizer), *self.ends}, key=len, reverse=True)
        self.marks = re.compile("|".join(map(re.escape, filter(str.strip, tokens))) or r"(?!)")

    def ids(self, observation: Observation) -> Ids:
        """The ids of an observation. Raises TypeError for what is none, DataError for a template that writes it not."""
        messages = [{"role": "user", "content": observation}] if isinstance(observation, str) else observation
        if not messages or not all(isinstance(one, dict) and isinstance(one.get("content"), str) for one in messages):
            raise TypeError(
                f"an observation {str(observation)[:80]!r}: expected text, or messages with a role and text, of an "
                "episode that is not done"
            )
        messages, left = [*messages], self.most
        for i, one in enumerate(messages):
            content, used = self.short(self.harmless(one["content"]), left)
            messages[i], left = one | {"content": content}, max(left - used, 0)
        if self.template == "plain":
            text = "\n".join(one["content"] for one in messages)
            ids = tokenize(self.tokenizer, [text], split_special_tokens=True)[0]
            if not ids:
                raise TypeError(
                    f"an observation {text!r} without a token, of an episode that is not done: expected text"
                )
            return ids
        return self.between(messages)

    def harmless(self, text: str) -> str:
        """The text without control tokens."""
        if self.template == "plain":  # read as ordinary characters
            return text
        text = text[: CHARACTERS * max(self.most, 1) + 1]  # `short` sees that it is longer
        while self.marks.search(text):
            text = self.marks.sub(lambda found: found[0][1:], text)
        return text.encode("ascii", "replace").decode() if self.spells(text) else text

    def short(self, text: str, most: int) -> tuple[str, int]:
        """The text, cut to so many tokens if it has more; and how many it has."""
        read = lambda text: tokenize(self.tokenizer, [text], split_special_tokens=True)[0]  # noqa: E731
        ids = read(text[: CHARACTERS * max(most, 1)])
        if len(ids) <= most and len(text) <= CHARACTERS * max(most, 1):
            return text, len(ids)
        kept = text_of(self.tokenizer, ids[: max(most - len(read(NOTE)), 0)])
        while self.template != "plain" and self.marks.search(kept):  # ids of words that are none of the vocabulary
            kept = self.marks.sub("", kept)
        return kept + NOTE, most

    def between(self, messages: list[Message]) -> Ids:
        """The ids behind the end of an assistant's turn, up to where its next words begin."""
        try:
            before, text = self.written(messages)
        except jinja2.TemplateError:
            text = "\n".join(one["content"] for one in messages)
            try:
                before, text = self.written([{"role": "user", "content": text}])
            except jinja2.TemplateError as error:
                raise DataError(f"the chat template cannot write a turn after the assistant's: {error}") from error
        start, whole = tokenize(self.tokenizer, [before, text])
        if whole[: len(start)] == start:
            return whole[len(start) :]
        return tokenize(self.tokenizer, [text[len(before) :]])[0]

    def written(self, messages: list[Message]) -> tuple[str, str]:
        """(the text up to the end of a turn of the assistant, the same with the messages and the next beginning)."""
        said = PONG
        if messages[0]["role"] == "tool":
            said = [{"role": "assistant", "content": "", "tool_calls": [self.call(one) for one in messages]}]
        asked = render(self.tokenizer, PING, {}, ask=True)
        text = render(self.tokenizer, PING + said + self.answers(messages), {}, ask=True)
        stop = first_end(text, len(asked), self.ends) if text.startswith(asked) else None
        if not all(one["content"].strip()[:20] in text for one in messages):
            raise jinja2.TemplateError("it leaves a message out")
        if stop is None:
            before = render(self.tokenizer, PING + said, {}).rstrip()
            stop = len(before) if text.startswith(before) else None
        if stop is None:
            raise jinja2.TemplateError("it has no end of the assistant's turn")
        return text[:stop], text

    def call(self, message: Message) -> Message:
        """The call that a tool's message answers."""
        function = {"name": message.get("name", "tool"), "arguments": self.no_arguments}
        return {"type": "function", "id": CALL, "function": function}

    def answers(self, messages: list[Message]) -> list[Message]:
        """The messages as templates want them that ask for the id of a call."""
        return [one | {"tool_call_id": CALL} if one["role"] == "tool" else one for one in messages]
