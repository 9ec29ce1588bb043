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
from typing import Any, TypeVar

from alignax.data import columns, reshape
from alignax.data.counts import Counts, DataError, Refused, Said
from alignax.data.dialogue import read_row
from alignax.data.layouts import normal, verdicts
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


# the columns of each form as the encoders take it, and where its replies stand
LAYOUT = {
    "stepwise": ("prompt", "steps", "verdicts"),
    "ranked": ("prompt", "replies"),
    "preference": ("prompt", "chosen", "rejected", "margin", "tie"),
    "ratings": ("prompt", "completion", "ratings", "score"),
    "unpaired": ("prompt", "completion", "label"),
    "prompt_completion": ("prompt", "completion"),
    "prompt_only": ("prompt",),
}
REPLIES = {"preference": ("chosen", "rejected"), "ranked": ("replies",)} | dict.fromkeys(
    ("ratings", "unpaired", "prompt_completion"), ("completion",)
)


Encoder = Callable[..., tuple[dict[str, Any], Counts]]  # (rows, tokenizer, options) -> (arrays, counts)
E = TypeVar("E", bound=Callable)


def takes(form: str) -> Callable[[E], E]:
    """Marks an encoder with the form of rows that it takes: whoever loads rows for it brings them into that form."""

    def mark(encode: E) -> E:
        encode.form = form  # pyright: ignore[reportFunctionMemberAccess]
        return encode

    return mark


def taken_by(encode: Encoder) -> str:
    """The form that an encoder takes, or one with some of its arguments bound."""
    return getattr(encode, "func", encode).form


def form_of(rows: Iterable[Row]) -> str:
    """The form of the rows of one data set, by the columns that hold something in some row.

    Raises DataError, naming the columns that it found, if they make no form.
    """
    made = [columns.with_prompt(read_row(row, Said())) for row in rows]
    rows = [row for row in made if isinstance(row, dict)]
    found = {name for row in rows for name in _present(row)}
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
    rows, lost = _made(rows, partial(_read, counts))
    made, unread, notes = [], set(), Counter()
    for kind, found in _by_form(rows, form).items():
        some, gone, noted = _laid_out(found, kind, template)
        unread |= {name for row in some or found for name in columns.unread(row, _layout(kind, row))}
        if (kind, form) in BY_PROMPT:
            some, more = _made(reshape.by_prompt(some), BY_PROMPT[kind, form])
        else:
            some, more = _made(some, BY_ROW.get((kind, form), lambda row: row))
        made, lost, notes = made + some, lost + gone + more, notes + noted
    counts = counts.then(len(made), lost)
    counts.leave(unread - counts.made)
    counts |= {f"noted_{note}": number for note, number in notes.items()}
    counts.require_rows(f"row of the form {form!r}")
    return made, counts


def _read(counts: Counts, row: Row) -> Made:
    """The row with its messages in one layout, but for what cannot be read, which the encoder will refuse; what is to
    be said of it goes into the counts."""
    remarks = Said()
    found = read_row(row, remarks)
    kept = {name: row[name] for name, value in found.items() if isinstance(value, Refused)}
    made = columns.with_prompt(found | kept if kept else found)
    if isinstance(made, dict):
        counts.say(remarks)
    return made


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
            elif one in ("missing_field", "prompt_mismatch") and isinstance(row, dict) and not isinstance(one, Refused):
                lost[Refused(one, f"found {_names(row) or 'no column'}")] += 1
            else:
                lost[one] += 1
    return out, lost


def _present(row: Row) -> set[str]:
    """The columns that may tell a form: those of lists hold one (a number of replies is none)."""
    lists = ("replies", "completions", "steps", "verdicts")
    return {name for name, value in row.items() if value is not None and (name not in lists or isinstance(value, list))}


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
    known = {*LAYOUT.get(main, ())}.union(*(names for kind, names in SHAPES if kind == main))
    out: dict[str, list[Row]] = {}
    for row in rows:
        found = _present(row)
        kind = _form(found, thumbs)
        # one whose columns are all of the main form's lacks a field of it, and is of no form of its own
        shapes = [names for other, names in SHAPES if other == kind and found.issuperset(names)]
        other = kind not in (None, main) and not any(known.issuperset(names) for names in shapes)
        out.setdefault(str(kind) if other else main, []).append(row)
    for kind, some in out.items():
        whole = (kind, form) == ("language_modelling", "prompt_completion") and all("messages" in row for row in some)
        if len(out) > 1 and kind != form and (kind, form) not in {*BY_PROMPT, *BY_ROW} and not whole:
            listing = ", ".join(f"{len(many)} {name} ({_names(many[0])})" for name, many in out.items())
            raise DataError(
                f"rows of {len(out)} forms in one data set: {listing}; no {form} can be made of {kind} here: put them "
                "into files of their own"
            )
    return out


def _laid_out(rows: list[Row], form: str, template: str) -> tuple[list[Row], Counter, Counter]:
    """The rows in the layout that the encoders take, how often each reason was given, and each note."""
    whole = not any(row.get("prompt") is not None for row in rows)
    if whole and form == "preference":
        columns.check_prompt(rows, LAYOUT[form])
    neutral = -1 in [number(one) for row in rows for one in verdicts(row, form) if not isinstance(one, bool)]
    rows, lost = _made(rows, partial(normal, form=form, whole=whole, neutral=neutral))
    replies = REPLIES.get(form, ())
    rows, notes = columns.repeated(rows, replies) if replies else (rows, Counter())
    rows, gone = _made(rows, partial(columns.with_turns, replies=replies, template=template))
    return rows, lost + gone, notes


def _names(row: Row) -> str:
    return ", ".join(sorted(columns.filled(row)))


def _layout(form: str, row: Row) -> tuple[str, ...]:
    """The columns that a row of a form is encoded from; of a dialogue its messages, or else its text."""
    dialogue = "messages" if isinstance(row.get("messages"), list) else "text"
    return (dialogue,) if form == "language_modelling" else LAYOUT[form]
