"""The forms that rows come in, how each is recognised, and how one is made from another: pure functions of rows.

The forms and their columns are TRL's, where it has them, and each may be text or conversational, a prompt or a reply
being a text or a list of messages {"role", "content", ...}. Other columns stay where they are. What the encoders take:

    language_modelling  {"text"} or {"messages"}; {"conversations"} of {"from", "value"} are read as messages
    prompt_only         {"prompt"}
    prompt_completion   {"prompt", "completion"}
    preference          {"prompt", "chosen", "rejected"}; whole texts or dialogues are split where they part
    unpaired            {"prompt", "completion", "label": true or false}, or all labels 1 or 0; another one is a class
    ranked              {"prompt", "replies"}, best first; {"prompt", "completions", "scores" or "ranks"} are sorted
    ratings             {"prompt", "completion", "ratings": {attribute: number}}, with or without a "score"
    stepwise            {"prompt", "steps", "verdicts"}; TRL's {"prompt", "completions", "labels"} are renamed
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from alignax.data import reshape
from alignax.data.counts import Counts, DataError
from alignax.data.reshape import Made, Row

# the columns that tell a form, the most telling first
SHAPES = (
    ("stepwise", ("prompt", "steps", "verdicts")),
    ("stepwise", ("prompt", "completions", "labels")),
    ("ranked", ("prompt", "replies")),
    ("ranked", ("prompt", "completions", "scores")),
    ("ranked", ("prompt", "completions", "ranks")),
    ("preference", ("chosen", "rejected")),
    ("ratings", ("prompt", "completion", "ratings")),
    ("unpaired", ("prompt", "completion", "label")),
    ("prompt_completion", ("prompt", "completion")),
    ("language_modelling", ("messages",)),
    ("language_modelling", ("conversations",)),
    ("language_modelling", ("text",)),
    ("prompt_only", ("prompt",)),
)
BY_PROMPT = {
    ("ratings", "ranked"): reshape.rated_ranking,
    ("ratings", "preference"): reshape.rated_pairs,
    ("ratings", "prompt_completion"): reshape.best_rated,
    ("ratings", "prompt_only"): reshape.one_prompt,
    ("stepwise", "prompt_only"): reshape.one_prompt,
    ("unpaired", "prompt_only"): reshape.one_prompt,
}
BY_ROW = {
    ("language_modelling", "prompt_only"): reshape.prompt_of,
    ("preference", "prompt_completion"): reshape.chosen_only,
    ("ranked", "prompt_completion"): reshape.best_only,
    ("unpaired", "prompt_completion"): reshape.liked_only,
    ("preference", "unpaired"): reshape.both_thumbs,
    ("ranked", "preference"): reshape.pairs,
    ("preference", "ranked"): reshape.ranking_of_two,
}


def form_of(rows: Iterable[Row]) -> str:
    """The form of the rows of one data set, by the columns that hold something in some row.

    Raises DataError, naming the columns that it found, if they make no form.
    """
    rows = list(rows)
    found = {name for row in rows for name, value in row.items() if value is not None}
    labels = [row["label"] for row in rows if row.get("label") is not None]
    thumbs = any(isinstance(label, bool) for label in labels) or all(label in (0, 1) for label in labels)
    for form, columns in SHAPES:
        if found.issuperset(columns) and (thumbs or form != "unpaired"):
            return form
    known = "; ".join(f"{form} {{{', '.join(columns)}}}" for form, columns in SHAPES)
    raise DataError(f"rows of no known form: found {', '.join(sorted(found)) or 'no column'}; expected one of {known}")


def convert(rows: list[Row], form: str, counts: Counts | None = None) -> tuple[list[Row], Counts]:
    """Rows of any form as rows of `form`, and the counts, those of the source included.

    Rows that have the form already come back as they are. Where there is no way to it (no pair in a demonstration), so
    do the others, and the encoder says what it misses. Raises DataError as `form_of`, and if no row is left.
    """
    counts = Counts(len(rows)) if counts is None else counts
    if not rows:
        return rows, counts
    own, whole = form_of(rows), not any(row.get("prompt") is not None for row in rows)
    plain, plain_counts = each(rows, lambda row: normal(row, own, whole), counts)
    if len(plain) < len(rows) or any(new is not old for new, old in zip(plain, rows)):
        rows, counts = plain, plain_counts
    if (own, form) in BY_PROMPT:
        rows, counts = each(reshape.by_prompt(rows), BY_PROMPT[own, form], counts)
    elif (own, form) in BY_ROW:
        rows, counts = each(rows, BY_ROW[own, form], counts)
    counts.require_rows(f"row of the form {form!r}")
    return rows, counts


def each(rows: Iterable[Any], change: Callable[[Any], Made], counts: Counts | None = None) -> tuple[list[Row], Counts]:
    """What `change` makes of each row, and the counts: of the rows that were made, and of those dropped before."""
    changed = map(change, rows)
    made = [one for some in changed for one in (some if isinstance(some, list) else [some])]
    lost = Counter(one for one in made if isinstance(one, str))
    out = [one for one in made if not isinstance(one, str)]
    return out, Counts.of(len(out), Counter(counts.dropped if counts else {}) + lost)


def normal(row: Row, form: str, whole: bool = False) -> Made:
    """The row in the layout that the encoders take, or the reason why it has none. `whole`: no row has a prompt."""
    if form == "preference":
        return reshape.split_shared(row) if whole or _holds_prompt(row) else row
    if form == "unpaired" and not isinstance(row.get("label"), bool) and row.get("label") in (0, 1):
        return row | {"label": row["label"] == 1}
    if form == "ranked" and "completions" in row and "replies" not in row:
        return reshape.ranked(row)
    if form == "stepwise" and "completions" in row and "steps" not in row:
        return reshape.stepwise(row)
    if form == "language_modelling" and "conversations" in row and "messages" not in row:
        return reshape.sharegpt(row)
    return row


def _holds_prompt(row: Row) -> bool:
    """A prompt of text beside whole dialogues, which begin with it as a message (UltraFeedback's binarized pairs)."""
    chosen = row.get("chosen")
    return isinstance(row.get("prompt"), str) and isinstance(chosen, list) and reshape.role(chosen[:1]) != "assistant"
