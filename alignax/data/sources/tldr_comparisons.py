"""TL;DR: which of two summaries of a post people preferred."""

from typing import Any, Unpack

from alignax.data.counts import Counts
from alignax.data.known import published, texts
from alignax.data.read import Reading
from alignax.data.reshape import Made, Row
from alignax.data.values import number

PROMPT = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def tldr_comparisons(
    *, path: str = "openai/summarize_from_feedback", split: str = "train", **reading: Unpack[Reading]
) -> tuple[list[Row], Counts]:
    """Rows {"prompt", "chosen", "rejected"} of Stiennon et al. 2020, "Learning to summarize from human feedback"
    (2009.01325), the prompt in the layout of its appendix B and the summaries after one space.

    Columns: info {"subreddit", "title", "post", ...}; summaries, two of {"text", ...}; choice, 0 or 1, the better one;
    and others, which are not read. News articles (info.article), which are part of the validation split, are no posts
    and are counted as missing. Comparisons on one post are held out together. The layout is that of public
    code that reads the set; the files themselves were not at hand.
    """
    columns = ("info", "summaries", "choice")
    return published(
        "tldr_comparisons",
        pair,
        key=post,
        columns=columns,
        path=path,
        split=split,
        hub=Reading(name="comparisons"),
        **reading,
    )


def post(row: Row) -> Any:
    """The text of the post."""
    return row["info"].get("post") if isinstance(row.get("info"), dict) else None


def pair(row: Row) -> Made:
    """The post with the better and the worse summary."""
    summaries, choice = row.get("summaries"), number(row.get("choice"))
    if not texts(row.get("info"), "subreddit", "title", "post") or choice not in (0, 1):
        return "missing_field"
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(texts(one, "text") for one in summaries):
        return "missing_field"
    better, worse = (f" {one['text'].strip()}" for one in (summaries[::-1] if choice else summaries))
    return {"prompt": PROMPT.format_map(row["info"]), "chosen": better, "rejected": worse}
