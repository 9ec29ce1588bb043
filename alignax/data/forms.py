"""The forms that rows come in, how each is recognised, and how one is made from another: pure functions of rows.

The forms and their columns are TRL's, where it has them, and each may be text or conversational, a prompt or a reply
being a text or a list of messages {"role", "content", ...}. What the encoders take:

    language_modelling  {"text"} or {"messages"}; {"conversations"} of {"from", "value"} are read as messages
    prompt_only         {"prompt"}
    prompt_completion   {"prompt", "completion"}
    preference          {"prompt", "chosen", "rejected"}; whole texts or dialogues are split where they part
    unpaired            {"prompt", "completion", "label": true or false}, or what `values.truth` takes for these; other
                        labels are classes
    ranked              {"prompt", "replies"}, best first; {"prompt", "completions", "scores" or "ranks"} are sorted
    ratings             {"prompt", "completion", "ratings": {attribute: number}}, with or without a "score"
    stepwise            {"prompt", "steps", "verdicts"}; TRL's {"prompt", "completions", "labels"} are renamed

In place of the prompt, judged replies may stand beside `messages` that lead up to them, or end in the one that is
judged. `system` and `history` become turns of the prompt, and so, under template "chat", do the turns of a dialogue
that is one text. Other columns stay where they are, and are named: no token is made of them.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from alignax.data import columns, reshape
from alignax.data.counts import Counts, DataError, Refused
from alignax.data.messages import role
from alignax.data.reshape import Made, Row
from alignax.data.values import is_absent, is_number, number, truth

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


# what each form reads beside the columns that tell it, and where its replies stand
BESIDE = {"preference": ("prompt", "margin", "tie"), "ratings": ("score",)}
REPLIES = {"preference": ("chosen", "rejected"), "ranked": ("replies",)} | dict.fromkeys(
    ("ratings", "unpaired", "prompt_completion"), ("completion",)
)


def form_of(rows: Iterable[Row]) -> str:
    """The form of the rows of one data set, by the columns that hold something in some row.

    Raises DataError, naming the columns that it found, if they make no form.
    """
    made = [columns.with_prompt(row) for row in rows]
    rows = [row for row in made if isinstance(row, dict)]
    found = {name for row in rows for name, value in row.items() if value is not None}
    if form := _form(found, _are_thumbs(rows)):
        return form
    if made and not rows:
        return "prompt_only"  # of no row that can be read: each says why
    known = "; ".join(f"{form} {{{', '.join(names)}}}" for form, names in SHAPES)
    raise DataError(f"rows of no known form: found {', '.join(sorted(found)) or 'no column'}; expected one of {known}")


def convert(
    rows: list[Row], form: str, counts: Counts | None = None, *, template: str = ""
) -> tuple[list[Row], Counts]:
    """Rows of any form as rows of `form`, and the counts, those of the source included.

    Where there is no way to it (no pair in a demonstration), the rows come back in the layout of their own form, and
    the encoder says what it misses. With the template "chat", dialogues that are one text become messages. Raises
    DataError as `form_of`; for a file of two forms of which one has no way to `form`; where the prompt may stand in a
    column that nothing reads (`columns.check_prompt`); and if no row is left.
    """
    counts = Counts(len(rows)) if counts is None else counts
    if not rows:
        return rows, counts
    rows, lost = _made(rows, columns.with_prompt)
    made, unread, noted = [], set(), 0
    for own, found in _by_form(rows, form).items():
        some, gone, off = _laid_out(found, own, template)
        unread |= {name for row in some or found for name in columns.unread(row, _read(own, row))}
        if (own, form) in BY_PROMPT:
            some, more = _made(reshape.by_prompt(some), BY_PROMPT[own, form])
        else:
            some, more = _made(some, BY_ROW.get((own, form), lambda row: row))
        made, lost, noted = made + some, lost + gone + more, noted + off
    counts = counts.then(len(made), lost)
    counts.leave(unread)
    if noted:
        counts["noted_prompt_repeated"] = noted
    counts.require_rows(f"row of the form {form!r}")
    return made, counts


def each(rows: Iterable[Any], change: Callable[[Any], Made]) -> tuple[list[Row], Counts]:
    """What `change` makes of each row, and the counts: of the rows that were made, and of those dropped."""
    out, lost = _made(rows, change)
    return out, Counts.of(len(out), lost)


def _made(rows: Iterable[Any], change: Callable[[Any], Made]) -> tuple[list[Row], Counter]:
    """What `change` makes of each row, and how often each reason was given, with the fields that are there."""
    out, lost = [], Counter()
    for row in rows:
        some = change(row)
        for one in some if isinstance(some, list) else [some]:
            if isinstance(one, dict):
                out.append(one)
            elif one == "missing_field" and isinstance(row, dict) and not isinstance(one, Refused):
                lost[Refused(one, f"found {_names(row) or 'no column'}")] += 1
            else:
                lost[one] += 1
    return out, lost


def _form(found: set[str], thumbs: bool) -> str | None:
    return next((form for form, names in SHAPES if found.issuperset(names) and (thumbs or form != "unpaired")), None)


def _are_thumbs(rows: list[Row]) -> bool:
    """Whether the labels of a data set are thumbs and no classes: some say so in words, or all are 1, 0 or -1."""
    labels = [number(row["label"]) for row in rows if not is_absent(row.get("label"))]
    words = [one for one in labels if isinstance(one, (bool, str)) and truth(one) is not None]
    return bool(words) or all(is_number(one) and one in (-1, 0, 1) for one in labels)


def _by_form(rows: list[Row], form: str) -> dict[str, list[Row]]:
    """The rows by their form: that of the data set, of which a row may lack a field, or another that it has whole."""
    if not rows:
        return {}
    thumbs, main = _are_thumbs(rows), form_of(rows)
    known = _read(main)
    out: dict[str, list[Row]] = {}
    for row in rows:
        found = {name for name, value in row.items() if value is not None}
        own = _form(found, thumbs)
        shapes = [names for other, names in SHAPES if other == own and found.issuperset(names)]
        other = own not in (None, main) and not any(known.issuperset(names) for names in shapes)
        out.setdefault(str(own) if other else main, []).append(row)
    for own, some in out.items():
        whole = (own, form) == ("language_modelling", "prompt_completion") and all("messages" in row for row in some)
        if len(out) > 1 and own != form and (own, form) not in {*BY_PROMPT, *BY_ROW} and not whole:
            told = ", ".join(f"{len(many)} {name} ({_names(many[0])})" for name, many in out.items())
            raise DataError(
                f"rows of {len(out)} forms in one data set: {told}; no {form} can be made of {own} here: put them into "
                "files of their own"
            )
    return out


def _laid_out(rows: list[Row], form: str, template: str) -> tuple[list[Row], Counter, int]:
    """The rows in the layout that the encoders take, how often each reason was given, and from how many replies the
    prompt was taken off."""
    whole = not any(row.get("prompt") is not None for row in rows)
    if whole and form == "preference":
        columns.check_prompt(rows, _read(form))
    neutral = -1 in [number(one) for row in rows for one in _verdicts(row) if not isinstance(one, bool)]
    rows, lost = _made(rows, partial(normal, form=form, whole=whole, neutral=neutral))
    replies = REPLIES.get(form, ())
    made = columns.repeated(rows, replies) if replies and not whole else rows
    off = sum(isinstance(one, dict) and one is not row for one, row in zip(made, rows))
    rows, gone = _made(made, lambda one: one)
    rows, more = _made(rows, partial(columns.with_turns, replies=replies, template=template))
    return rows, lost + gone + more, off


def normal(row: Row, form: str, whole: bool = False, neutral: bool = False) -> Made:
    """The row in the layout that the encoders take, or the reason why it has none.

    whole: no row has a prompt; neutral: a verdict of 0 is neither up nor down, since others are -1.
    """
    if form == "preference":
        row = _judged(row, margin=number, tie=lambda tie: tie if truth(tie) is None else truth(tie))
        return reshape.split_shared(row) if whole or _holds_prompt(row) else row
    if form == "unpaired" and not isinstance(row.get("label"), bool):
        verdict = None if neutral and number(row.get("label")) == 0 else truth(row.get("label"))
        return Refused("no_thumb", f"label {row.get('label')!r}") if verdict is None else row | {"label": verdict}
    if form == "ratings":
        return _judged(row, score=number, ratings=_ratings)
    if form == "ranked" and "completions" in row and "replies" not in row:
        return reshape.ranked(_judged(row, scores=_numbers, ranks=_numbers))
    if form == "stepwise":
        made = reshape.stepwise(row) if "completions" in row and "steps" not in row else row
        if neutral and 0 in [number(one) for one in _verdicts(row) if not isinstance(one, bool)]:
            return Refused("no_rating", "a verdict of 0 beside others of -1")
        return _judged(made, verdicts=lambda said: [*map(_verdict, said)] if isinstance(said, list) else said)
    return row


def _judged(row: Any, **read: Callable[[Any], Any]) -> Any:
    """The row with what its judgements say; as it is where nothing of it is read otherwise."""
    told = {
        name: meant(row[name]) for name, meant in read.items() if isinstance(row, dict) and row.get(name) is not None
    }
    same = all(repr(row[name]) == repr(value) for name, value in told.items())
    return row if same else row | told


def _ratings(told: Any) -> Any:
    return (
        {name: None if is_absent(one) else number(one) for name, one in told.items()}
        if isinstance(told, dict)
        else told
    )


def _numbers(told: Any) -> Any:
    return [*map(number, told)] if isinstance(told, list) else told


def _verdict(told: Any) -> Any:
    """A verdict on a step: true, false, or a rate."""
    said = truth(told)
    return number(told) if said is None or (is_number(told) and told != -1) else said


def _verdicts(row: Row) -> list[Any]:
    """The thumb or the verdicts on steps of a row."""
    told = row.get("verdicts") or row.get("labels") or row.get("label")
    return told if isinstance(told, list) else [told]


def _names(row: Row) -> str:
    return ", ".join(sorted(columns.filled(row)))


def _read(form: str, row: Row | None = None) -> set[str]:
    """The columns that rows of a form are made of; of a dialogue its messages, or else its text."""
    if form == "language_modelling" and row is not None:
        return {"messages"} if row.get("messages") is not None else {"text"}
    return {*BESIDE.get(form, ())}.union(*(names for own, names in SHAPES if own == form))


def _holds_prompt(row: Row) -> bool:
    """A prompt of text beside whole dialogues, which begin with it as a message (UltraFeedback's binarized pairs)."""
    chosen = row.get("chosen")
    return (
        isinstance(row.get("prompt"), str)
        and isinstance(chosen, list)
        and role(chosen[0] if chosen else None) != "assistant"
    )
