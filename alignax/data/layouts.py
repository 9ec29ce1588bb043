"""One layout for each form: a row as the encoders take it, its judgements read (`values.py`), or the reason why not."""

from collections.abc import Callable
from typing import Any

from alignax.data import columns, reshape
from alignax.data.counts import Refused
from alignax.data.messages import role
from alignax.data.reshape import Made, Row
from alignax.data.values import is_absent, is_number, number, truth


def normal(row: Row, form: str, whole: bool = False, neutral: bool = False) -> Made:
    """The row in the layout that the encoders take, or the reason why it has none.

    whole: no row has a prompt; neutral: a verdict of 0 is neither up nor down, since others are -1.
    """
    if form == "preference":
        row = _judged(row, margin=number, tie=lambda tie: tie if truth(tie) is None else truth(tie))
        dialogues = all(isinstance(row.get(name), list) for name in ("chosen", "rejected"))
        if _holds_prompt(row):
            return _checked(row, reshape.split_shared(row))
        return reshape.split_shared(row) if whole or (dialogues and row.get("prompt") is None) else row
    if form == "unpaired" and not isinstance(row.get("label"), bool):
        verdict = None if neutral and number(row.get("label")) == 0 else truth(row.get("label"))
        return Refused("no_thumb", f"label {row.get('label')!r}") if verdict is None else row | {"label": verdict}
    if form == "ratings":
        return _judged(row, score=number, ratings=_ratings)
    if form == "ranked" and (judged := {"scores", "ranks"} & columns.filled(row)):
        given = row if "replies" not in row else row | {"completions": row["replies"]}
        keep = "scores" if "scores" in judged else "ranks"
        made = _judged({name: given[name] for name in given if name != "replies"}, scores=_numbers, ranks=_numbers)
        return reshape.ranked(made | dict.fromkeys(judged - {keep}))
    if form == "stepwise":
        made = reshape.stepwise(row) if "completions" in row and "steps" not in row else row
        if neutral and 0 in [number(one) for one in verdicts(row, form) if not isinstance(one, bool)]:
            return Refused("no_rating", "a verdict of 0 beside others of -1")
        return _judged(made, verdicts=lambda value: [*map(_verdict, value)] if isinstance(value, list) else value)
    return row


def _judged(row: Any, **read: Callable[[Any], Any]) -> Any:
    """The row with what its judgements say; as it is where nothing of it is read otherwise."""
    values = {
        name: meant(row[name]) for name, meant in read.items() if isinstance(row, dict) and row.get(name) is not None
    }
    same = all(repr(row[name]) == repr(value) for name, value in values.items())
    return row if same else row | values


def _ratings(value: Any) -> Any:
    return (
        {name: None if is_absent(one) else number(one) for name, one in value.items()}
        if isinstance(value, dict)
        else value
    )


def _numbers(value: Any) -> Any:
    return [*map(number, value)] if isinstance(value, list) else value


def _verdict(value: Any) -> Any:
    """A verdict on a step: true, false, or a rate."""
    verdict = truth(value)
    return number(value) if verdict is None or (is_number(value) and value != -1) else verdict


def verdicts(row: Row, form: str) -> list[Any]:
    """The thumb, or the verdicts on steps, of a row."""
    value = row.get("label") if form == "unpaired" else row.get("verdicts") or row.get("labels")
    return value if isinstance(value, list) else [value] if form == "unpaired" else []


def _checked(row: Row, made: Made) -> Made:
    """A pair that was split beside a prompt of its own, which must be among what the dialogues share."""
    shared = made["prompt"] if isinstance(made, dict) and isinstance(made["prompt"], list) else []
    asked = [one["content"].strip() for one in shared if isinstance(one, dict) and role(one) == "user"]
    if not shared or row["prompt"].strip() in asked:
        return made
    return Refused("prompt_mismatch", f"the prompt {row['prompt'][:40]!r} is no turn of the dialogues")


def _holds_prompt(row: Row) -> bool:
    """A prompt of text beside whole dialogues, which begin with it as a message (UltraFeedback's binarized pairs)."""
    chosen = row.get("chosen")
    return (
        isinstance(row.get("prompt"), str)
        and isinstance(chosen, list)
        and role(chosen[0] if chosen else None) != "assistant"
    )
