"""How a conversation opens: by that its rows are held out, so that none is trained on and held out as well."""

import os.path
import re

from alignax.data.columns import ANSWERED, earlier, filled, with_prompt
from alignax.data.counts import Said
from alignax.data.dialogue import read_row
from alignax.data.messages import Message
from alignax.data.reshape import Row, key_of, shared_text
from alignax.data.transcripts import ASSISTANT


def opening(row: Row) -> str:
    """What the rows of one conversation share: how its prompt, dialogue or text begins, whatever comes later.

    Messages, of a prompt too, count up to the reply to the first user turn, their words and roles alone; one user turn
    is the text that it says, and earlier turns in a `history` come before it. A text counts up to its first
    "\\n\\nAssistant:". Other texts count whole, but for a pair without a prompt: of what both begin with, the whole
    lines, or without a line break the first sentence, since the words that replies happen to share differ from pair to
    pair. A whole line of both replies counts as asked.
    """
    converted = with_prompt(read_row(row, Said()))
    row = converted if isinstance(converted, dict) else row
    talk, answered = row.get("messages"), filled(row) & {*ANSWERED}
    asked = row.get("prompt") if answered or not isinstance(talk, list) else talk
    asked = talk if asked is None else asked
    words = asked if asked is not None else next((row[name] for name in ("chosen", "text") if row.get(name)), row)
    if before := earlier(row.get("history")):
        words = before
    if isinstance(words, list):
        turns = [
            (one["role"], one["content"]) for one in words if isinstance(one, dict) and {"role", "content"} <= {*one}
        ]
        begun = turns[: _first_reply(words)] if len(turns) == len(words) else words
        return begun[0][1] if len(begun) == 1 and begun[0][0] == "user" else key_of(begun)
    if not isinstance(words, str):
        return key_of(words)
    begun, marker, _ = words.partition(ASSISTANT)
    rejected = row.get("rejected")
    if marker or asked is not None or words is not row.get("chosen") or not isinstance(rejected, str):
        return begun
    return _shared_opening(words, rejected)


def _first_reply(messages: list[Message]) -> int | None:
    """Where the assistant first answers a user; None if it never does."""
    spoken = [one.get("role") for one in messages]
    asked = spoken.index("user") if "user" in spoken else len(spoken)
    return spoken.index("assistant", asked) if "assistant" in spoken[asked:] else None


def _shared_opening(chosen: str, rejected: str) -> str:
    shared = os.path.commonprefix([chosen, rejected]).lstrip()
    whole = re.match(r"(?s).*\n|.*?[.?!](?=\s|$)", shared)
    return whole.group().strip() if whole else chosen[: shared_text(chosen, rejected)] or chosen
