"""TL;DR as TRL publishes it: posts with a summary, or with a better and a worse one."""

from typing import Unpack

from alignax.data.counts import Counts
from alignax.data.forms import normal
from alignax.data.known import published, texts
from alignax.data.read import Reading
from alignax.data.reshape import Made, Row

ALSO = ("completion", "chosen", "rejected")


def tldr(*, path: str = "trl-lib/tldr", split: str = "train", **reading: Unpack[Reading]) -> tuple[list[Row], Counts]:
    """Rows {"prompt", "completion"} of Stiennon et al. 2020, "Learning to summarize from human feedback" (2009.01325).

    Columns: prompt, which ends with "TL;DR:", and completion, which begins with a space. "trl-lib/tldr-preference" has
    chosen and rejected in its place, as texts or as dialogues. Held out is the set's own test or validation split. The
    annotators' comparisons as they were published are `tldr_comparisons`.
    """
    return published(
        "tldr",
        judged,
        key=lambda row: row.get("prompt"),
        columns=("prompt",),
        also=ALSO,
        path=path,
        split=split,
        **reading,
    )


def judged(row: Row) -> Made:
    """A post with its summary, or with two."""
    if "chosen" in row and "rejected" in row:  # text, or dialogues that begin with the prompt
        return normal({name: row.get(name) for name in ("prompt", "chosen", "rejected")}, "preference")
    columns = ("prompt", "completion")
    return {name: row[name] for name in columns} if texts(row, *columns) else "missing_field"
