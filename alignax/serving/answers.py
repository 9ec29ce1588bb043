"""Replies in OpenAI's form: whole ones, and pieces of one that is streamed."""

import functools
import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from alignax.sampling.service import Piece, Token
from alignax.sampling.stops import token_bytes
from alignax.serving.fields import Wanted


class Form(NamedTuple):
    """How one of the two endpoints says what it says."""

    chat: bool
    name: str  # of the model
    vocabulary: "Vocabulary"
    wanted: Wanted
    id: str
    created: int

    def head(self, streamed: bool) -> dict[str, Any]:
        """What every answer begins with."""
        kind = "chat.completion" if self.chat else "text_completion"
        kind += ".chunk" if self.chat and streamed else ""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name}

    def choice(self, index: int, pieces: Sequence[Piece], *, streamed: bool = False, first: bool = True) -> dict:
        """One reply, or a piece of it."""
        text, last = "".join(piece.text for piece in pieces), pieces[-1]
        tokens = [token for piece in pieces for token in piece.tokens]
        out: dict[str, Any] = {"index": index, "logprobs": self.logprobs(tokens)}
        out |= {"finish_reason": last.reason or None, "stop_reason": last.stop or None}
        if self.chat:
            said = {"role": "assistant"} if first else {}
            out |= {"delta" if streamed else "message": said | {"content": text}}
        else:
            out["text"] = text
        if self.wanted.token_ids:
            out["token_ids"] = [token.id for token in tokens]
            if first and not self.chat:
                out["prompt_token_ids"] = list(self.wanted.asks[index].ids)
        return out

    def logprobs(self, tokens: Sequence[Token]) -> dict | None:
        """Log-probabilities of tokens, in nats, under the model's own distribution."""
        k = self.wanted.logprobs
        if k is None:
            return None
        spell = self.vocabulary.text
        if self.chat:
            said = lambda i, logp: {"token": spell(i), "logprob": logp, "bytes": list(self.vocabulary.bytes(i))}  # noqa: E731
            return {
                "content": [
                    said(token.id, token.logp) | {"top_logprobs": [said(i, logp) for i, logp in token.top[:k]]}
                    for token in tokens
                ]
            }
        # as OpenAI does: the one that was chosen is told too, where it is not among the first k
        tops = [{spell(token.id): token.logp} | {spell(i): x for i, x in token.top[:k]} for token in tokens]
        return {
            "tokens": [spell(token.id) for token in tokens],
            "token_logprobs": [token.logp for token in tokens],
            "top_logprobs": tops if k else None,
            "text_offset": [token.offset for token in tokens],
        }

    def usage(self, written: int) -> dict:
        """Tokens that were read and written."""
        asked = sum(map(len, self.wanted.prompts))
        return {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}

    def whole(self, found: Sequence[Sequence[Piece]]) -> dict:
        """The answer to a request that is not streamed."""
        written = sum(len(piece.tokens) for pieces in found for piece in pieces)
        choices = [self.choice(index, pieces) for index, pieces in enumerate(found)]
        return self.head(False) | {"choices": choices, "usage": self.usage(written)} | self.asked()

    def asked(self) -> dict:
        """The ids of what a chat was asked, where they are wanted."""
        return {"prompt_token_ids": list(self.wanted.prompts[0])} if self.chat and self.wanted.token_ids else {}


class Vocabulary:
    """Tokens as bytes and text; found at the first question, since it takes a while."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    @functools.cached_property
    def _all(self) -> list[bytes]:
        return token_bytes(self.tokenizer)

    def bytes(self, token: int) -> bytes:
        """What a token adds to a text."""
        return self._all[token] if token < len(self._all) else b""

    def text(self, token: int) -> str:
        """The same as text; a token may be a part of a character."""
        return self.bytes(token).decode("utf-8", "replace")


def form(chat: bool, name: str, vocabulary: Vocabulary, wanted: Wanted) -> Form:
    """The form of the answer to one request."""
    kind = "chatcmpl" if chat else "cmpl"
    return Form(chat, name, vocabulary, wanted, f"{kind}-{secrets.token_hex(12)}", int(time.time()))
