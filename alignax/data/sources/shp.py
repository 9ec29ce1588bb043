"""SHP: which of two comments on a Reddit post people liked better."""

from functools import partial
from typing import Unpack

from alignax.data.counts import Counts
from alignax.data.known import asked, published, texts
from alignax.data.read import Reading
from alignax.data.reshape import Made, Row
from alignax.data.values import truth


def shp(
    *, path: str = "stanfordnlp/SHP", split: str = "train", template: str = "chat", **reading: Unpack[Reading]
) -> tuple[list[Row], Counts]:
    """Rows {"prompt", "chosen", "rejected", "score_ratio"} of Ethayarajh et al. 2022, "Understanding Dataset Difficulty
    with V-Usable Information" (2110.08420).

    Columns: history, the post; human_ref_A and human_ref_B, two comments; labels, 1 where A is preferred and 0 where B
    is; score_ratio, of their votes, at least 1; and others, which are not read. `data_dir` is a subreddit, such as
    "askculinary". Under template "plain" a line break parts post and comment. Rows of one post are held out together.
    The layout is that of the set's card; the files themselves were not at hand.
    """
    columns = ("history", "human_ref_A", "human_ref_B", "labels")
    return published(
        "shp",
        partial(pair, template=template),
        key=lambda row: row.get("history"),
        columns=columns,
        judged=("labels", "score_ratio"),
        path=path,
        split=split,
        **reading,
    )


def pair(row: Row, template: str) -> Made:
    """The post with the comment that was preferred and the other one."""
    first = truth(row.get("labels"))
    if not texts(row, "history", "human_ref_A", "human_ref_B") or first is None:
        return "missing_field"
    chosen, rejected = ("A", "B") if first else ("B", "A")
    replies = {"chosen": row[f"human_ref_{chosen}"], "rejected": row[f"human_ref_{rejected}"]}
    return {"prompt": asked(row["history"], template)} | replies | {"score_ratio": row.get("score_ratio")}
