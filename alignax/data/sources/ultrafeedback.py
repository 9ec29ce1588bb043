"""UltraFeedback: four replies to each prompt, rated by a language model on four attributes."""

from functools import partial
from typing import Any, Unpack

from alignax.data.counts import Counts
from alignax.data.known import asked, published, texts
from alignax.data.read import Reading
from alignax.data.reshape import Made, Row
from alignax.data.values import is_number, number

ATTRIBUTES = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def ultrafeedback(
    *, path: str = "openbmb/UltraFeedback", split: str = "train", template: str = "chat", **reading: Unpack[Reading]
) -> tuple[list[Row], Counts]:
    """Rows {"prompt", "completion", "ratings"} of Cui et al. 2023, "UltraFeedback" (2310.01377), one for each reply.

    Columns: instruction; completions, a list of {"response", "annotations": {attribute: {"Rating": "1" to "5" or "N/A",
    ...}}, ...}; and others, which are not read. A loss on rankings or pairs gets the replies to a prompt in the order
    of their mean rating over the attributes that are rated in all that are compared, since "overall_score" was wrong in
    the first release. A reply without text is counted as a missing field; under template "plain" a line break ends the
    prompt. There is one split: hold out by percent. The same replies as ready pairs: `ultrafeedback_binarized`. The
    layout is from public code that reads the set; the files themselves were not at hand.
    """
    columns = ("instruction", "completions")
    return published(
        "ultrafeedback",
        partial(rated, template=template),
        key=lambda row: row.get("instruction"),
        columns=columns,
        path=path,
        split=split,
        **reading,
    )


def rated(row: Row, template: str) -> Made:
    """The replies to one prompt, each with its ratings."""
    replies = row.get("completions")
    if not texts(row, "instruction") or not isinstance(replies, list):
        return "missing_field"
    return [
        {"prompt": asked(row["instruction"], template), "completion": reply["response"], "ratings": ratings(reply)}
        if texts(reply, "response")
        else "missing_field"
        for reply in replies
    ] or "too_few_replies"


def ratings(reply: dict[str, Any]) -> dict[str, int | float]:
    """The ratings of a reply, without those that are not available."""
    annotations = reply.get("annotations")
    notes = {name: annotations.get(name) for name in ATTRIBUTES} if isinstance(annotations, dict) else {}
    given = {name: number(note.get("Rating")) for name, note in notes.items() if isinstance(note, dict)}
    return {name: one for name, one in given.items() if is_number(one)}
