"""Tulu: a mixture of dialogues for supervised fine-tuning."""

from typing import Unpack

from alignax.data.counts import Counts
from alignax.data.known import published
from alignax.data.openings import opening
from alignax.data.read import Reading
from alignax.data.reshape import Made, Row


def tulu(
    *, path: str = "allenai/tulu-3-sft-mixture", split: str = "train", **reading: Unpack[Reading]
) -> tuple[list[Row], Counts]:
    """Rows {"messages", "source"} of Lambert et al. 2024, "Tulu 3" (2411.15124).

    Columns: id; messages, a list of {"role", "content"}; source, the data set that the dialogue is from. The version 2
    ("allenai/tulu-v2-sft-mixture", 2311.10702) calls the last one dataset. There is one split: hold out by percent,
    which keeps dialogues of one opening on one side.
    """
    also = ("source", "dataset")
    return published("tulu", dialogue, key=opening, columns=("messages",), also=also, path=path, split=split, **reading)


def dialogue(row: Row) -> Made:
    """The messages, and where they are from."""
    if not isinstance(row.get("messages"), list):
        return "missing_field"
    return {"messages": row["messages"], "source": row.get("source", row.get("dataset"))}
