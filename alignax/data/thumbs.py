"""Single replies with a thumb up or down to arrays, and the mismatched replies of KTO's estimate of the KL."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from alignax.data.arrays import padded_length, row_ids, side_arrays
from alignax.data.counts import Counts, DataError
from alignax.data.dialogue import prompt_of, read_rows
from alignax.data.encode import encode_fields
from alignax.data.forms import takes
from alignax.data.reshape import Row, both_thumbs
from alignax.data.templates import Ids, Reply, completion_ids
from alignax.data.tokenizer import Tokenizer, pad_id


@takes("unpaired")
def unpaired_rows(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    *,
    template: str,
    max_length: int,
    pad_to: int | None = None,
    counts: Counts | None = None,
) -> tuple[dict[str, Any], Counts]:
    """Single replies with a thumb as arrays: side and mismatched, each {tokens, valid, mask} [N T], desirable, row [N].

    Rows are {"prompt", "completion", "label": bool}; a preference pair makes two of them. `mismatched` is the reply of
    a near row with another prompt, after this row's prompt (KTO's estimate of KL); where none fits into `max_length`
    its mask is empty, so that it counts for nothing. Otherwise as `demo_rows`; raises DataError as well if all rows
    have one prompt or one label.
    """
    rows, counts = thumbs(rows, counts)
    rows, remarks = read_rows(rows)
    kept, counts = encode_fields(rows, ("prompt", "completion"), tokenizer, template, max_length, counts, remarks)
    counts.require_rows("rated reply")
    desirable = np.array([rows[row]["label"] for row, _, _ in kept])
    if desirable.all() or not desirable.any():
        raise DataError(
            f"all {len(kept)} replies have the label {bool(desirable[0])}: a thumb tells nothing without both"
        )
    others = _mismatched([rows[row] for row, _, _ in kept], [p for _, p, _ in kept], tokenizer, template, max_length)
    replies = [(prompt, side) for _, prompt, (side,) in kept]
    length = padded_length([len(p) + len(r.ids) for p, r in (*replies, *others)], max_length, pad_to)
    fill = pad_id(tokenizer)
    arrays = {"side": side_arrays(replies, length, fill), "mismatched": side_arrays(others, length, fill)}
    return arrays | {"desirable": desirable, "row": row_ids(kept)}, counts


def thumbs(rows: Iterable[Row], counts: Counts | None = None) -> tuple[list[Row], Counts]:
    """Rows {"prompt", "completion", "label"}: two from each preference pair, the others as they are.

    A label that is neither true nor false makes the row one with a missing field. Raises DataError if no row has one.
    """
    rows = list(rows)
    out: list[Row] = []
    for row in rows:
        if "chosen" in row or "rejected" in row:
            out += [one for one in both_thumbs(row | {"tie": None}) if isinstance(one, dict)]
        else:
            out.append(row if isinstance(row.get("label"), bool) else row | {"completion": None})
    if rows and not any(isinstance(row.get("label"), bool) for row in out):
        found = sorted({name for row in rows for name in row})
        labels = sorted({repr(row["label"])[:40] for row in rows if row.get("label") is not None})[:5]
        listing = f", labels {', '.join(labels)}" if labels else ""
        raise DataError(
            f"no row has a thumb: found {', '.join(found)}{listing}; expected preference pairs, or rows "
            '{"prompt": text, "completion": text, "label": true or false}'
        )
    return out, (counts or Counts(len(out))).then(len(out), {})


def _mismatched(
    rows: list[Row], prompts: list[Ids], tokenizer: Tokenizer, template: str, limit: int
) -> list[tuple[Ids, Reply]]:
    """Each row's prompt with the reply of a near row of another prompt that fits; an empty reply if none does.

    Two rows on is tried first: the sides of a pair are neighbours, so a chosen reply gets the next pair's chosen one
    and a rejected one its rejected one, and the estimate of KL sees both labels. All rows at once for each distance,
    so that the tokenizer is called 12 times at most.
    """
    if all(row["prompt"] == rows[0]["prompt"] for row in rows):
        raise DataError(f"all {len(rows)} rows have one prompt: mismatched replies, for KTO's KL, need at least two")
    found: dict[int, Reply] = {}
    for distance in (2, 1, *range(3, 13)):
        pairs = [(i, (i + distance) % len(rows)) for i in range(len(rows)) if i not in found]
        pairs = [(i, j) for i, j in pairs if rows[i]["prompt"] != rows[j]["prompt"]]
        asked = [prompt_of(rows[i]) for i, _ in pairs]
        replies = [rows[j]["completion"] for _, j in pairs]
        ids = completion_ids(tokenizer, asked, [prompts[i] for i, _ in pairs], replies, template) if pairs else []
        found |= {
            i: reply
            for (i, _), reply in zip(pairs, ids)
            if not isinstance(reply, str) and len(prompts[i]) + len(reply.ids) <= limit
        }
    return [(prompt, found.get(i, Reply([], []))) for i, prompt in enumerate(prompts)]
