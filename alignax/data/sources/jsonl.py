"""JSON lines of prompts, demonstrations, and replies judged in any way."""

from alignax.data.counts import Counts, DataError
from alignax.data.read import read

NAMES = ("prompt", "completion", "chosen", "rejected", "replies", "ratings", "steps", "verdicts")
FORMS = '{"prompt": text}, {"prompt": text, "completion": text} or {"prompt": text, "chosen": text, "rejected": text}'


def jsonl(
    *,
    path: str,
    split: str = "train",
    heldout_percent: float = 0.0,
    fields: dict[str, str] | None = None,
    attributes: list[str] | None = None,
) -> tuple[list[dict], Counts]:
    """Rows {"prompt"}, {"prompt", "completion"} or {"prompt", "chosen", "rejected"}, other keys kept; so rankings,
    ratings and judged steps as well (`alignax.data.judged`).

    `fields` maps the names to the file's, where they differ: {"prompt": "question", "completion": "answer"}.
    `attributes` names columns that hold a rating each, which are collected into "ratings". HelpSteer2 (Wang et al.
    2024, 2406.08673) is read by fields = {"completion": "response"} and attributes = ["helpfulness", "correctness",
    "coherence", "complexity", "verbosity"]. Held-out rows are chosen by the prompt, so that no prompt is on both sides.
    Raises DataError as `read` does, for a name in `fields` that is unknown or that no row has, likewise in
    `attributes`, and if no row has a prompt.
    """
    fields = {"prompt": "prompt"} | (fields or {})
    for name in fields:
        if name not in NAMES:
            raise DataError(f"config.data.fields.{name}: expected names among {', '.join(NAMES)}")
    rows = read(path, split=split, heldout_percent=heldout_percent, key=lambda row: str(row.get(fields["prompt"])))
    found = sorted({name for row in rows for name in row})
    for name, theirs in fields.items():
        if theirs not in found:
            raise DataError(
                f"{path}: no row has the field {theirs!r} (for the {name}): found {', '.join(found) or 'none'}; source "
                f"'jsonl' expects {FORMS}; other names go into config.data.fields"
            )
    for name in attributes or ():
        if name not in found:
            raise DataError(
                f"{path}: no row has the field {name!r} (of data.attributes): found {', '.join(found)}; expected "
                "columns with one rating each"
            )
    renamed = {*fields, *fields.values(), *(attributes or ())}
    out = [
        {name: row[theirs] for name, theirs in fields.items() if theirs in row}
        | {name: value for name, value in row.items() if name not in renamed}
        | ({"ratings": {name: row.get(name) for name in attributes}} if attributes else {})
        for row in rows
    ]
    return out, Counts(len(out))
