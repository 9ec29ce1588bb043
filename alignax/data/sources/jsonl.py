"""JSON lines of prompts, demonstrations or preference pairs."""

from alignax.data.counts import Counts, DataError
from alignax.data.read import read

NAMES = ("prompt", "completion", "chosen", "rejected")
FORMS = '{"prompt": text}, {"prompt": text, "completion": text} or {"prompt": text, "chosen": text, "rejected": text}'


def jsonl(
    *, path: str, split: str = "train", heldout_percent: float = 0.0, fields: dict[str, str] | None = None
) -> tuple[list[dict], Counts]:
    """Rows {"prompt"}, {"prompt", "completion"} or {"prompt", "chosen", "rejected"}, other keys kept.

    `fields` maps these names to the file's, where they differ: {"prompt": "question", "completion": "answer"}. Held-out
    rows are chosen by the prompt, so that no prompt is on both sides. Raises DataError as `read` does, for a name in
    `fields` that is unknown or that no row has, and if no row has a prompt.
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
    renamed = {*fields, *fields.values()}
    out = [
        {name: row[theirs] for name, theirs in fields.items() if theirs in row}
        | {name: value for name, value in row.items() if name not in renamed}
        for row in rows
    ]
    return out, Counts(len(out))
