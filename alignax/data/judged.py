"""Rows with other judgements than a pair to arrays: rankings of replies, ratings by attribute, verdicts on steps.

As in `encode.py`: padded on the right, `row` is the index into the rows, and a row that is refused is counted. What a
row lacks, or what is too long for it, is counted; a judgement of the wrong kind stops with a DataError that names it.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from alignax.data.arrays import Kept, padded_length, row_ids, side_arrays
from alignax.data.counts import Counts, DataError
from alignax.data.dialogue import Prompt, prompt_of, read_rows, where
from alignax.data.encode import check_fields, encode_texts
from alignax.data.forms import takes
from alignax.data.reshape import Row
from alignax.data.templates import Ids, Reply, completion_ids
from alignax.data.tokenizer import Tokenizer, pad_id
from alignax.data.values import is_number

RANKING = {"prompt": "text", "replies": "[text, ...], best first"}
RATING = {"prompt": "text", "completion": "text", "ratings": "{attribute: number or null, ...}"}
STEPS = {"prompt": "text", "steps": "[text, ...]", "verdicts": "[true, false or a rate in [0, 1], one per step]"}


@takes("ranked")
def ranking_rows(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_length: int,
    pad_to: int | None = None,
    counts: Counts | None = None,
) -> tuple[dict[str, Any], Counts]:
    """Rankings as arrays: replies, each {tokens, valid, mask} [N K T], best first, and row [N].

    Rows are {"prompt", "replies": [text, ...]}. K is the longest ranking; a shorter one is filled with empty replies,
    the prompt alone, whose `mask` is empty. A ranking is refused as a whole, if one of its replies is, if two have the
    same tokens, or if there are fewer than two. Otherwise as `encode.pair_rows`.
    """
    rows, remarks = read_rows(rows)
    check_fields(rows, RANKING)
    lists = [_texts(row.get("replies")) for row in rows]
    texts = [(prompt_of(row), *replies) for row, replies in zip(rows, lists)]
    kept, counts = encode_texts(texts, tokenizer, template, max_length, counts, remarks)
    for row, _, replies in kept:
        if len(replies) < 2:
            counts.drop("too_few_replies", row)
    kept = [one for one in kept if len(one[2]) >= 2]
    counts.require_rows("ranking")
    K, empty = max(len(replies) for _, _, replies in kept), Reply([], [])
    flat = [(prompt, reply) for _, prompt, replies in kept for reply in [*replies, *[empty] * (K - len(replies))]]
    length = padded_length([len(prompt) + len(reply.ids) for prompt, reply in flat], max_length, pad_to)
    sides = side_arrays(flat, length, pad_id(tokenizer))
    return {"replies": {name: x.reshape(-1, K, length) for name, x in sides.items()}, "row": row_ids(kept)}, counts


@takes("ratings")
def rating_rows(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_length: int,
    attributes: Sequence[str] | None = None,
    pad_to: int | None = None,
    counts: Counts | None = None,
) -> tuple[dict[str, Any], Counts]:
    """Rated replies as arrays: reply {tokens, valid, mask} [N T], target [N A], given [N A], row [N].

    Rows are {"prompt", "completion", "ratings": {attribute: number or null}}. A attributes in the order of
    `attributes`, or of `attributes_of` these rows; a rating that is null or absent is not `given`, its target 0. A row
    without any rating is refused. Otherwise as `encode.demo_rows`; raises DataError as well for a rating that is no
    finite number, and for one of an attribute that `attributes` does not name.
    """
    rows, remarks = read_rows(rows)
    check_fields(rows, RATING)
    names = attributes_of(rows) if attributes is None else tuple(attributes)
    texts = [(prompt_of(row), row.get("completion") if _given(row) is not None else None) for row in rows]
    kept, counts = encode_texts(texts, tokenizer, template, max_length, counts, remarks)
    rated = [(one, given) for one in kept if (given := _rating(rows[one[0]], names))]
    for row in {row for row, _, _ in kept} - {row for (row, _, _), _ in rated}:
        counts.drop("no_rating", row)
    counts.require_rows("rated reply")
    kept = [one for one, _ in rated]
    return {
        "reply": _replies(kept, tokenizer, max_length, pad_to),
        "target": np.array([[given.get(name, 0.0) for name in names] for _, given in rated], np.float32),
        "given": np.array([[name in given for name in names] for _, given in rated]),
        "row": row_ids(kept),
    }, counts


def attributes_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """The attributes of which the rows hold a rating, in alphabetical order.

    Raises DataError if there is none.
    """
    rows = list(rows)
    check_fields(rows, RATING)
    names = sorted({name for row in rows for name, value in (_given(row) or {}).items() if value is not None})
    if not names:
        raise DataError(f"no row has a rating in its field 'ratings'; expected {RATING['ratings']}")
    return tuple(names)


@takes("stepwise")
def step_rows(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_length: int,
    pad_to: int | None = None,
    counts: Counts | None = None,
) -> tuple[dict[str, Any], Counts]:
    """Judged steps as arrays: reply {tokens, valid, mask} [N T], target [N T], step_end [N T], row [N].

    Rows are {"prompt", "steps": [text, ...], "verdicts": [...]}, a verdict true, false, or the rate in [0, 1] at which
    continuations of the step come out right. The reply is the concatenation of the steps. `step_end` marks the last
    token of each step, where `target` holds its verdict; the last step ends with the end of sequence, so that the last
    token of a whole reply is one that was judged. Where the tokens of a text cut short after a step are no prefix of
    those of the whole, the row is refused. Otherwise as `encode.demo_rows`; raises DataError as well for another number
    of verdicts than of steps, and for a verdict outside of [0, 1].
    """
    rows, remarks = read_rows(rows)
    check_fields(rows, STEPS)
    verdicts = [_verdicts(row) for row in rows]
    steps = [_texts(row.get("steps")) if given else (None,) for row, given in zip(rows, verdicts)]
    texts = [(prompt_of(row), _joined(parts)) for row, parts in zip(rows, steps)]
    kept, counts = encode_texts(texts, tokenizer, template, max_length, counts, remarks)
    ends = _step_ends([prompt_of(rows[row]) for row, _, _ in kept], [steps[row] for row, _, _ in kept], kept,
                      tokenizer, template)  # fmt: skip
    for (row, _, _), end in zip(kept, ends):
        if end is None:
            counts.drop("step_not_prefix", row)
    kept, ends = [one for one, end in zip(kept, ends) if end], [end for end in ends if end]
    counts.require_rows("reply with judged steps")
    reply = _replies(kept, tokenizer, max_length, pad_to)
    target_NT, end_NT = np.zeros(reply["mask"].shape, np.float32), np.zeros(reply["mask"].shape, bool)
    for i, ((row, _, _), end) in enumerate(zip(kept, ends)):
        target_NT[i, end], end_NT[i, end] = verdicts[row], True
    return {"reply": reply, "target": target_NT, "step_end": end_NT, "row": row_ids(kept)}, counts


def _step_ends(
    prompts: list[Prompt], steps: list[tuple], kept: list[Kept], tokenizer: Tokenizer, template: str
) -> list[list[int] | None]:
    """Per row the position of the last token of each step, or None where cutting after a step changes tokens.

    All the shortened texts go through the tokenizer at once; the last step ends with the row.
    """
    owners = [i for i, parts in enumerate(steps) for _ in parts[1:]]
    cut = [text for parts in steps for text in itertools.accumulate(parts[:-1])]
    before = [kept[i][1] for i in owners]
    shorter: list[list[Reply | str]] = [[] for _ in kept]
    for i, ids in zip(owners, completion_ids(tokenizer, [prompts[i] for i in owners], before, cut, template)):
        shorter[i].append(ids)
    return [_ends(prompt, whole.ids, parts) for (_, prompt, (whole,)), parts in zip(kept, shorter, strict=True)]


def _ends(prompt: Ids, whole: Ids, shorter: list[Reply | str]) -> list[int] | None:
    """The last positions of the steps of one row; `shorter` are its beginnings, each with an end of sequence."""
    lengths = [0]
    for part in shorter:
        body = [] if isinstance(part, str) else part.ids[:-1]
        if len(body) <= lengths[-1] or whole[: len(body)] != body:
            return None
        lengths.append(len(body))
    if lengths[-1] >= len(whole) - 1:  # the last step has no token of its own
        return None
    return [len(prompt) + n - 1 for n in (*lengths[1:], len(whole))]


def _replies(kept: list[Kept], tokenizer: Tokenizer, max_length: int, pad_to: int | None) -> dict[str, np.ndarray]:
    pairs = [(prompt, reply) for _, prompt, (reply,) in kept]
    return side_arrays(
        pairs, padded_length([len(p) + len(r.ids) for p, r in pairs], max_length, pad_to), pad_id(tokenizer)
    )


def _texts(value: Any) -> tuple:
    """The texts of a list, (None,) for anything else: a missing field."""
    return tuple(value) if isinstance(value, (list, tuple)) and value else (None,)


def _joined(steps: tuple) -> str | None:
    """The concatenated steps; None if one is no text, "" if one is blank."""
    if not all(isinstance(step, str) for step in steps):
        return None
    return "".join(steps) if all(step.strip() for step in steps) else ""


def _given(row: Row) -> dict | None:
    ratings = row.get("ratings")
    if ratings is not None and not isinstance(ratings, dict):
        raise DataError(f"{where('ratings', ratings, row)}: expected {RATING['ratings']}")
    return ratings


def _rating(row: Row, names: tuple[str, ...]) -> dict[str, float]:
    """The ratings of a row that were given, each checked."""
    given = {name: value for name, value in (_given(row) or {}).items() if value is not None}
    for name, value in given.items():
        if not is_number(value):
            raise DataError(f"{where(f'ratings.{name}', value, row)}: expected a finite number, or null for none")
        if name not in names:
            raise DataError(f"{where(f'ratings.{name}', value, row)}: expected attributes among {', '.join(names)}")
    return {name: float(value) for name, value in given.items()}


def _verdicts(row: Row) -> list[float] | None:
    """The verdicts of a row as probabilities, each checked; None if it lacks them or the steps."""
    steps, verdicts = row.get("steps"), row.get("verdicts")
    if steps is None or verdicts is None:
        return None
    if not isinstance(verdicts, (list, tuple)) or not isinstance(steps, (list, tuple)) or len(verdicts) != len(steps):
        count = len(steps) if isinstance(steps, (list, tuple)) else "no list of"
        raise DataError(f"{where('verdicts', verdicts, row)}: {count} steps; expected a list with one verdict per step")
    for verdict in verdicts:
        if not (isinstance(verdict, bool) or (is_number(verdict) and 0 <= verdict <= 1)):
            raise DataError(f"{where('verdicts', verdict, row)}: expected true, false or a rate in [0, 1]")
    return [float(verdict) for verdict in verdicts]
