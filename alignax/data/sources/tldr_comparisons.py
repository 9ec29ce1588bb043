"""TL;DR: which of two summaries of a post people preferred."""

from typing import Unpack

from alignax.data.counts import Counts
from alignax.data.known import published, texts
from alignax.data.read import Reading
from alignax.data.reshape import Made, Row

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
        key=lambda row: (row.get("info") or {}).get("post"),
        columns=columns,
        path=path,
        split=split,
        **(Reading(name="comparisons") | reading),
    )


def pair(row: Row) -> Made:
    """The post with the better and the worse summary."""
    info, summaries, choice = row.get("info") or {}, row.get("summaries") or [], row.get("choice")
    if not texts(info, "subreddit", "title", "post") or len(summaries) != 2 or choice not in (0, 1):
        return "missing_field"
    if not all(texts(summary, "text") for summary in summaries):
        return "missing_field"
    better, worse = (f" {summaries[k]['text'].strip()}" for k in (choice, 1 - choice))
    return {"prompt": PROMPT.format_map(info), "chosen": better, "rejected": worse}
