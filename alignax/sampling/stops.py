"""Texts that end a reply, found on the device: an automaton over the bytes of tokens.

A stop text may begin and end inside of tokens, and may be cut into tokens in many ways. Aho and Corasick's automaton
(1975) reads all stop texts at once, byte by byte; here a whole token is one step of it, looked up in a table [S, V]
that is made once.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int
from transformers.convert_slow_tokenizer import bytes_to_unicode

from alignax.types import Record, record


@record
class Stops(Record):
    """What a reply has spelled of the stop texts after one more token. State 0 is nothing, the last one is a hit."""

    table: Int[Array, "S V"]

    @property
    def hit(self) -> int:
        """The state in which a stop text has been spelled. No token leads out of it."""
        return self.table.shape[0] - 1

    def after(self, state_B: Int[Array, " B"], token_B: Int[Array, " B"]) -> Int[Array, " B"]:
        """The states after a token of each row."""
        return self.table[state_B, token_B]


def stops(tokenizer: Any, texts: Sequence[str]) -> Stops:
    """The automaton of some stop texts for a tokenizer. Raises ValueError for an empty text and one that no tokens
    spell."""
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"stop texts {list(texts)!r}: expected one or more texts that are not empty")
    table = automaton([text.encode() for text in texts], token_bytes(tokenizer))
    for text in texts:
        if not reaches(automaton([text.encode()], token_bytes(tokenizer))):
            raise ValueError(
                f"stop text {text!r}: no sequence of this tokenizer's tokens spells it, so no reply would ever end "
                "with it; take a text of its vocabulary"
            )
    return Stops(table=jnp.asarray(table))


def token_bytes(tokenizer: Any) -> list[bytes]:
    """What each token adds to a text, in bytes; a byte-level token may be a part of a character."""
    ids = list(range(len(tokenizer)))
    names = tokenizer.convert_ids_to_tokens(ids)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.loads(backend.to_str()).get("decoder") if backend else None
    if "ByteLevel" in json.dumps(decoder):
        byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
        added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
        return [
            added[i].encode() if i in added else bytes(byte_of[char] for char in name if char in byte_of)
            for i, name in zip(ids, names, strict=True)
        ]
    as_it_stands = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    first = next((i for i in ids if tokenizer.decode([i], **as_it_stands).isalnum()), ids[0])
    before = tokenizer.decode([first], **as_it_stands)  # some tokenizers take away the space that a text begins with
    said = tokenizer.batch_decode([[first, i] for i in ids], **as_it_stands)
    single = re.compile("<0x([0-9A-F]{2})>")
    found = [single.fullmatch(name or "") for name in names]
    return [bytes([int(m[1], 16)]) if m else text.removeprefix(before).encode() for m, text in zip(found, said)]


def automaton(patterns: Sequence[bytes], tokens: Sequence[bytes]) -> Int[np.ndarray, "S V"]:
    """The state after each token from each state; the last state is a hit, and stays."""
    children, final = [{}], [False]
    for pattern in patterns:
        state = 0
        for byte in pattern:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                final.append(False)
            state = children[state][byte]
        final[state] = True
    hit = len(children)
    step = np.zeros((hit + 1, 256), np.int32)
    step[0, list(children[0])] = list(children[0].values())
    fallback, queue = [0] * hit, list(children[0].values())
    for state in queue:  # by depth: the fallback of a state is done before it
        final[state] |= final[fallback[state]]
        step[state] = step[fallback[state]]
        for byte, child in children[state].items():
            fallback[child] = step[fallback[state], byte]
            step[state, byte] = child
            queue.append(child)
    step[:hit][np.isin(step[:hit], np.flatnonzero(final))] = hit
    step[hit] = hit
    longest = max(map(len, tokens))
    table = np.repeat(np.arange(hit + 1, dtype=np.int32)[:, None], len(tokens), axis=1)
    for place in range(longest):
        has = np.array([len(token) > place for token in tokens])
        byte = np.array([token[place] if len(token) > place else 0 for token in tokens])
        table[:, has] = step[table[:, has], byte[has][None]]
    return table


def reaches(table: Int[np.ndarray, "S V"]) -> bool:
    """Whether some tokens lead from the beginning to a hit."""
    seen, new = {0}, {0}
    while new:
        new = {int(s) for state in new for s in np.unique(table[state])} - seen
        seen |= new
    return len(table) - 1 in seen
