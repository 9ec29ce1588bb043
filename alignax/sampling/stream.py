"""The text of a reply while it is written: whole characters, up to a stop text and no further."""

from collections.abc import Sequence
from typing import Any, NamedTuple

AS_IT_STANDS = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
CUT = "\N{REPLACEMENT CHARACTER}"  # what a character of which some bytes are missing is decoded to


class Growing:
    """Tokens to text, one after another. The joined pieces are the text of the whole, as `sampler.texts` has it.

    A piece is what a token adds to the text of a few tokens before it, since a tokenizer may write a token otherwise
    where a text begins. A character that is cut into several tokens comes with the last of them.
    """

    def __init__(self, tokenizer: Any, lead: Sequence[int] = ()):
        self.tokenizer = tokenizer
        self.ids = list(lead)  # `data.boundary.lead`: what the reply is decoded behind
        self.start, self.told = 0, len(self.ids)  # ids[start:told] are the text that new ones are compared with

    def add(self, token: int) -> str:
        """What one more token adds to the text; "" while a character is not complete."""
        self.ids.append(token)
        new = self._text(self.start, len(self.ids))
        return "" if new.endswith(CUT) else self._told(new)

    def rest(self) -> str:
        """What is left at the end of the reply: the beginning of a character."""
        return self._told(self._text(self.start, len(self.ids)))

    def _told(self, new: str) -> str:
        piece = new[len(self._text(self.start, self.told)) :]
        self.start, self.told = self.told, len(self.ids)
        return piece

    def _text(self, start: int, stop: int) -> str:
        return self.tokenizer.decode(self.ids[start:stop], **AS_IT_STANDS) if stop > start else ""


class Heard(NamedTuple):
    """What may be passed on of a text."""

    text: str
    stop: str = ""  # the stop text before which it ends


class Until:
    """A text up to the first of some stop texts, which may lie across pieces: what may begin one is held back."""

    def __init__(self, stops: Sequence[str]):
        self.stops, self.held = tuple(stops), ""

    def add(self, piece: str) -> Heard:
        """What one more piece lets through."""
        text = self.held + piece
        found = [(at, stop) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            self.held = ""
            return Heard(text[:at], stop)
        keep = max((begun(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - keep :]
        return Heard(text[: len(text) - keep])

    def rest(self) -> str:
        """What was held back and is part of the reply after all."""
        text, self.held = self.held, ""
        return text


def begun(text: str, stop: str) -> int:
    """How many of the last characters of a text may be the beginning of the stop text."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)


def cut(text: str, stops: Sequence[str]) -> str:
    """A whole text up to the first of the stop texts."""
    until = Until(stops)
    heard = until.add(text)
    return heard.text if heard.stop else heard.text + until.rest()
