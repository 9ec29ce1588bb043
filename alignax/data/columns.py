"""What the columns of a row say beside prompt and replies: each that could change the tokens is read, or named.

Functions of one row give the row, or the reason (a key of REASONS) why it cannot be used; a row that nothing changes
comes back as it is.
"""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from alignax.data.counts import DataError, Refused, Said
from alignax.data.messages import MEDIA, canonical, role
from alignax.data.reshape import Made, Row, without
from alignax.data.transcripts import ASSISTANT, HUMAN, has_turns, is_transcript, messages, split_last
from alignax.data.values import is_absent

SYSTEM = ("system", "system_prompt")  # columns that hold a system turn
ALWAYS = ("tools", "chat_template_kwargs", "part")  # what every encoder reads, and the name of a mixture's part
ANSWERED = ("completion", "chosen", "replies", "completions", "steps")  # columns that answer a prompt
# columns that tell of a row and are no part of what is said in it, if they hold a few words
LABELS = re.compile(
    r"(?i)(.*_)?(id|ids|idx|index|uuid|hash|source|origin|dataset|subset|split|lang|language|licen[cs]e|url|model|category"
    r"|type|topic|domain|date|time|timestamp|created|author|annotator|version|tags?)"
)
FEW = 4  # words


def filled(row: Row) -> set[str]:
    """The columns that hold something."""
    return {name for name, value in row.items() if value is not None and value not in ("", [], {})}


def with_prompt(row: Row) -> Made:
    """The row, of `dialogue.read_row`, with its dialogue under "messages", and, where replies are judged, what they
    answer under "prompt"."""
    for name in MEDIA:
        if isinstance(row.get(name), (str, bytes, list, dict)) and row[name]:
            return Refused("not_text", f"the column {name!r}")
    answered = filled(row) & {*ANSWERED}
    if row.get("conversations") and not row.get("messages") and (row.get("prompt") is None or not answered):
        row = without(row, "conversations", "messages") | {"messages": canonical(row["conversations"], Said())}
    talk = row.get("messages")
    if row.get("prompt") is not None or not isinstance(talk, list) or not talk:
        return row
    rest, ends = without(row, "messages"), role(talk[-1]) == "assistant"
    if {"chosen", "rejected"} <= filled(row):
        chosen = row["chosen"]
        if isinstance(chosen, list) and role(chosen[0]) != "assistant":
            return row  # a whole dialogue
        same = ends and _said(talk[-1]) == (_said(chosen[-1]) if isinstance(chosen, list) else chosen)
        return rest | {"prompt": talk[:-1] if same else talk}
    if answered - {"completion"}:
        return rest | {"prompt": talk}
    if {"label", "ratings"} & filled(row) and not answered and ends:
        return rest | {"prompt": talk[:-1], "completion": talk[-1:]}
    return row


def with_turns(row: Row, replies: Iterable[str], template: str) -> Made:
    """The row with its `system` and `history` in the prompt, and a dialogue that is one text ("\\n\\nHuman: ...") up to
    its last turn there: under template "chat" as messages."""
    turned = _as_turns(row, [name for name in replies if name in row], template)
    return _with_columns(turned) if isinstance(turned, dict) else turned


def repeated(rows: list[Row], replies: tuple[str, ...]) -> tuple[list[Row], Counter]:
    """The rows, each without the prompt with which its replies begin, where they are whole texts or dialogues, and how
    often that, or its chance, was met (keys of NOTES).

    Messages and dialogues that are one text tell so themselves. Other words may be repeated by chance, as in "Hello"
    and "Hello!": texts are whole where they begin with their prompt in nine of ten rows.
    """
    rests = [_rests(row, replies) for row in rows]
    texts = [row for row in rows if isinstance(row.get("prompt"), str) and _replies(row, replies)]
    found = sum(rest is not None and isinstance(row.get("prompt"), str) for row, rest in zip(rows, rests))
    whole, out, notes = 10 * found >= 9 * len(texts), [], Counter()
    for row, rest in zip(rows, rests):
        certain = not isinstance(row.get("prompt"), str) or is_transcript(row["prompt"])
        certain = certain or any(isinstance(one, list) for one in _replies(row, replies))
        out.append(row if rest is None or not (whole or certain) else rest)
        if rest is not None:
            notes["prompt_repeated" if whole or certain else "prompt_echoed"] += 1
    return out, notes


def check_prompt(rows: list[Row], read: Iterable[str]) -> None:
    """Raises DataError if pairs of text have no prompt, and may have one in a column that nothing reads.

    A prompt is else what both replies begin with; words that they happen to share are none where another column holds
    it.
    """
    pairs = [row for row in rows if all(isinstance(row.get(name), str) for name in ("chosen", "rejected"))]
    open_ended = [row for row in pairs if not all(has_turns(row[name]) for name in ("chosen", "rejected"))]
    known = {*read, *ALWAYS, *SYSTEM, "history"}
    for name in sorted({name for row in open_ended for name in filled(row)} - known):
        values = [row[name] for row in open_ended if name in filled(row)]
        if any(map(_may_ask, values, [bool(LABELS.fullmatch(name))] * len(values))):
            raise DataError(
                f"pairs without a prompt, beside the column {name!r} ({str(values[0])[:80]!r}), which nothing reads: "
                f"set data.fields to {{'prompt': {name!r}}} if it holds the prompt, or remove it; words that the "
                "replies happen to share make none"
            )


def _may_ask(value: Any, label: bool) -> bool:
    """Whether a value may be what a row asks: text, unless it is a number or a date, or a few words of a label."""
    if isinstance(value, (list, tuple)):  # a list of words is one of tags
        return any(isinstance(one, dict) or (isinstance(one, str) and " " in one.strip()) for one in value)
    words = value.split() if isinstance(value, str) else []
    return isinstance(value, dict) or (any(map(str.isalpha, value)) if words and not label else len(words) > FEW)


def unread(row: Row, read: Iterable[str]) -> set[str]:
    """The columns of which no token is made."""
    return filled(row) - {*read, *ALWAYS}


def _said(message: Any) -> Any:
    return message.get("content") if isinstance(message, dict) else message


def _replies(row: Row, names: Iterable[str]) -> list[Any]:
    """All replies of a row."""
    found = [row[name] for name in names if row.get(name) is not None]
    return [one for many in found for one in (many if isinstance(many, list) else [])] if "replies" in names else found


def _rests(row: Row, names: tuple[str, ...]) -> Row | None:
    """The row without the prompt in its replies; None unless all of them begin with it."""
    replies = _replies(row, names)
    rests = [_rest(row.get("prompt"), reply) for reply in replies]
    if not rests or any(rest is None for rest in rests):
        return None
    return row | ({"replies": rests} if "replies" in names else dict(zip(names, rests)))


def _rest(prompt: Any, reply: Any) -> Any:
    """What a reply says after the prompt with which it begins; None if it does not."""
    if isinstance(prompt, str) and isinstance(reply, str):
        rest = reply.removeprefix(prompt)
        cut = prompt[-1:].isalnum() and rest[:1].isalnum()  # within a word
        return rest if prompt.strip() and len(rest) < len(reply) and rest.strip() and not cut else None
    if not isinstance(reply, list) or not prompt:
        return None
    if isinstance(prompt, str):
        asked = bool(reply) and role(reply[0]) == "user" and _said(reply[0]) == prompt
        return reply[1:] if asked and len(reply) > 1 else None
    n = len(prompt) if isinstance(prompt, list) else 0
    return reply[n:] if n and len(reply) > n and reply[:n] == prompt else None


def _as_turns(row: Row, replies: list[str], template: str) -> Made:
    if template == "chat" and isinstance(row.get("text"), str) and "prompt" not in row and is_transcript(row["text"]):
        return without(row, "text") | {"messages": messages(row["text"])}
    prompt, texts = row.get("prompt"), _replies(row, replies)
    if not isinstance(prompt, str) or not has_turns(prompt) or not all(isinstance(one, str) for one in texts):
        return row
    whole = is_transcript(prompt) or prompt.rstrip().endswith(ASSISTANT.strip())  # and no more than quoted there
    if any(HUMAN in reply for reply in texts):
        found = split_last(prompt, texts)
        if isinstance(found, str):
            return found
        prompt, texts = found
    if template == "chat" and whole:
        prompt, texts = messages(prompt), [reply.strip() for reply in texts]
    fields = {"replies": texts} if "replies" in replies else dict(zip(replies, texts))
    return row | {"prompt": prompt} | fields if prompt != row["prompt"] or texts != _replies(row, replies) else row


def _with_columns(row: Row) -> Made:
    """The row with its system column and its earlier turns at the beginning of the dialogue or the prompt."""
    name = "prompt" if row.get("prompt") is not None else "messages"
    system = [row[column] for column in SYSTEM if isinstance(row.get(column), str) and not is_absent(row[column])]
    before = earlier(row.get("history"))
    turns = [{"role": "user", "content": row[name]}] if isinstance(row.get(name), str) else row.get(name)
    if not (system or before) or not isinstance(turns, list):
        return row
    stated = [_said(one) for one in turns if role(one) in ("system", "developer")]
    if any(one != (system or stated)[0] for one in (*system, *stated)):
        return Refused("bad_turns", "two system turns, of the row and of a column")
    begin = [{"role": "system", "content": system[0]}] if system and not stated else turns[: len(stated)]
    return without(row, *SYSTEM, *(("history",) if before else ())) | {name: [*begin, *before, *turns[len(stated) :]]}


def earlier(history: Any) -> list[dict]:
    """Earlier turns, told as pairs of a question and its reply; [] for anything else."""
    pairs = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    )
    texts = [text for pair in history for text in pair] if pairs else []
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
