"""Rows of any file or data set, in any of the forms of `alignax.data.forms`."""

from typing import Unpack

from alignax.data.counts import Counts, DataError
from alignax.data.forms import form_of
from alignax.data.openings import opening
from alignax.data.read import JUDGEMENTS, Reading, check_columns, read
from alignax.data.reshape import Row

NAMES = (
    "prompt", "completion", "chosen", "rejected", "label", "replies", "ratings", "score", "steps", "verdicts",
    "completions", "scores", "ranks", "labels", "messages", "conversations", "text", "system", "history", "tools",
    "margin", "tie",
)  # fmt: skip


def jsonl(
    *,
    path: str | list[str],
    fields: dict[str, str] | None = None,
    attributes: list[str] | None = None,
    split: str = "train",
    **reading: Unpack[Reading],
) -> tuple[list[Row], Counts]:
    """Rows of one of the forms of `alignax.data.forms`, text or conversational, other keys kept; of several paths
    their union.

    `fields` maps the names to the file's, where they differ: {"prompt": "question", "completion": "answer"}.
    `attributes` names columns that hold a rating each, which are collected into "ratings". Held-out rows are chosen by
    how the conversation opens (`reshape.opening`), so that none is on both sides. Raises DataError as `read` does, for
    a name in `fields` that is unknown or that no row has, likewise in `attributes`, and if the columns make no form.
    """
    fields, attributes = fields or {}, attributes or []
    for name in fields:
        if name not in NAMES:
            raise DataError(f"config.data.fields.{name}: expected names among {', '.join(NAMES)}")

    def renamed(row: Row) -> Row:
        gone = {*fields, *fields.values(), *attributes}
        kept = {name: value for name, value in row.items() if name not in gone}
        named = {name: row[column] for name, column in fields.items() if column in row}
        return named | kept | ({"ratings": {name: row.get(name) for name in attributes}} if attributes else {})

    texts = {column for name, column in fields.items() if name not in JUDGEMENTS}
    judged = {*attributes, *(fields.get(name, name) for name in JUDGEMENTS)} - texts
    rows = read(path, split=split, key=lambda row: opening(renamed(row)), judged=judged, **reading)
    path = path if isinstance(path, str) else ", ".join(path)
    for whose, columns in (("fields", fields.values()), ("attributes", attributes)):
        check_columns(path, rows, columns, "jsonl", "the names of columns there", f" (of data.{whose})")
    rows = [renamed(row) for row in rows]
    try:
        form_of(rows)
    except DataError as error:
        raise DataError(f"{path}: {error}; other names go into config.data.fields") from None
    return rows, Counts(len(rows))
