"""UltraFeedback as pairs: the best of four replies against one of the others."""

from typing import Unpack

from alignax.data.counts import Counts
from alignax.data.forms import normal
from alignax.data.known import published
from alignax.data.read import Reading
from alignax.data.reshape import Made, Row


def ultrafeedback_binarized(
    *, path: str = "HuggingFaceH4/ultrafeedback_binarized", split: str = "train", **reading: Unpack[Reading]
) -> tuple[list[Row], Counts]:
    """Rows {"prompt", "chosen", "rejected", "score_chosen", "score_rejected"} of Tunstall et al. 2023, "Zephyr"
    (2310.16944), after Cui et al. 2023 (2310.01377).

    Columns: prompt, the text of the first turn; chosen and rejected, whole dialogues as lists of messages; their
    scores; and prompt_id and messages, which are not read. The prompt of a row is the messages that both share.
    """
    columns = ("chosen", "rejected")
    return published(
        "ultrafeedback_binarized",
        pair,
        key=lambda row: row.get("prompt"),
        columns=columns,
        also=("prompt", *SCORES),
        path=path,
        split=split,
        hub=Reading(train_split="train_prefs", heldout_split="test_prefs"),
        **reading,
    )


def pair(row: Row) -> Made:
    """The dialogues split where they part."""
    kept = {name: row[name] for name in ("prompt", "chosen", "rejected", *SCORES) if name in row}
    return normal(kept, "preference")


SCORES = ("score_chosen", "score_rejected")
