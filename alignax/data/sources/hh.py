"""Anthropic's helpful and harmless preferences: whole dialogues, turns marked "\\n\\nHuman:" and "\\n\\nAssistant:"."""

from typing import Any, Unpack

from alignax.data.columns import filled
from alignax.data.counts import Counts
from alignax.data.forms import each
from alignax.data.openings import opening
from alignax.data.read import Reading, check_columns, read, with_defaults
from alignax.data.reshape import Row
from alignax.data.transcripts import split_last

FIELDS = ("chosen", "rejected")


def hh(
    *, path: str = "Anthropic/hh-rlhf", subset: str = "", split: str = "train", **reading: Unpack[Reading]
) -> tuple[list[Row], Counts]:
    """Rows {"prompt", "chosen", "rejected"} of Bai et al. 2022, "Training a Helpful and Harmless Assistant with RLHF"
    (2204.05862).

    A dialogue is split at its last assistant turn: the prompt ends with "\\n\\nAssistant:", the reply is what follows,
    its leading space included, so that prompt + reply is the dialogue; under template "chat" its turns are made
    messages (`forms.convert`). `subset` is a folder of the hub's data set, such
    as "harmless-base"; a single file is read whatever it says. Held-out rows are chosen by the dialogue's opening: the
    same conversation at a later turn stays on one side. Raises DataError as `read` does, and if the file has no such
    fields.
    """
    rows = read(path, split=split, key=opening, **with_defaults(path, Reading(data_dir=subset), reading))
    expected = '{"chosen": dialogue, "rejected": dialogue}; for {"prompt", ...} rows use source \'jsonl\''
    check_columns(path, rows, FIELDS, "hh", expected)
    unread = {name for row in rows for name in filled(row)} - {*FIELDS}
    rows, counts = each(rows, split_pair)
    counts.leave(unread)
    counts.require_rows(f"preference pair in {path}")
    return rows, counts


def split_pair(row: dict[str, Any]) -> dict[str, str] | str:
    """The row as {"prompt", "chosen", "rejected"}, or the reason (a key of REASONS) why it is none."""
    if not all(isinstance(row.get(field), str) for field in FIELDS):
        return "missing_field"
    found = split_last("", [row[field] for field in FIELDS])
    if isinstance(found, str):
        return found
    prompt, (chosen, rejected) = found
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
