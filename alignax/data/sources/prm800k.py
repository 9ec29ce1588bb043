"""PRM800K: solutions of which people judged every step."""

from typing import Any, Unpack

from alignax.data.counts import Counts
from alignax.data.known import asked, published, texts
from alignax.data.read import Reading
from alignax.data.reshape import Made, Row, stepwise
from alignax.data.values import number


def prm800k(
    *, path: str = "trl-lib/prm800k", neutral: bool = True, split: str = "train", template: str = "chat",
    **reading: Unpack[Reading],
) -> tuple[list[Row], Counts]:  # fmt: skip
    """Rows {"prompt", "steps", "verdicts"} of Lightman et al. 2023, "Let's Verify Step by Step" (2305.20050).

    Columns of the authors' files, phase1_train.jsonl and so on: question {"problem", ...}; label {"steps": [...]}, each
    step {"completions": [{"text", "rating"}, ...], "chosen_completion": index or null, "human_completion": {"text"} or
    null}; and others, which are not read. A rating of 1 is right, of -1 wrong, and of 0 `neutral`. Each step that was
    judged and not chosen ends a row of its own, after the steps chosen before it; the steps chosen make one row.
    Columns of TRL's set, made from phase 1, its neutral steps wrong: prompt, completions, labels. The layouts are those
    of TRL's script and of the sets' cards; the files themselves were not at hand.
    """
    change = lambda row: _asked(solutions(row, neutral) if "label" in row else published_by_trl(row), template)  # noqa: E731
    also = ("question", "label", "prompt", "completions", "labels")
    return published("prm800k", change, key=problem, columns=(), also=also, path=path, split=split, **reading)


def problem(row: Row) -> Any:
    """The text of the sum."""
    question = row.get("question")
    return question.get("problem") if isinstance(question, dict) else row.get("prompt")


def _asked(made: Made, template: str) -> Made:
    """Rows whose sums are asked as the template needs it."""
    if isinstance(made, list):
        return [one for some in made for one in [_asked(some, template)]]  # pyright: ignore[reportReturnType]
    return made | {"prompt": asked(made["prompt"], template)} if isinstance(made, dict) else made


def published_by_trl(row: Row) -> Made:
    """A row of TRL's set."""
    return stepwise(row) if texts(row, "prompt") and "labels" in row else "missing_field"


def solutions(row: Row, neutral: bool) -> Made:
    """The rows of one labelled solution."""
    steps = row["label"].get("steps") if isinstance(row["label"], dict) else None
    if not isinstance(problem(row), str) or not isinstance(steps, list) or not all(map(_sound, steps)):
        return "missing_field"
    made, path = [], []
    for step in steps:
        judged = [(one["text"], _verdict(one.get("rating"), neutral)) for one in step.get("completions") or ()]
        chosen, written = step.get("chosen_completion"), step.get("human_completion")
        ends = [[*path, one] for i, one in enumerate(judged) if i != chosen and one[1] is not None]
        made += ends
        next_step = judged[chosen] if chosen is not None else (written["text"], True) if written else ("", None)
        if next_step[1] is None:
            made += [] if ends else [path]
            break
        path.append(next_step)
    else:
        made.append(path)
    return [_solution(problem(row), solution) for solution in made if solution] or "no_rating"


def _sound(step: Any) -> bool:
    """Whether a step has the layout above, so that what was chosen is there."""
    if not isinstance(step, dict) or not isinstance(step.get("completions") or [], list):
        return False
    completions = step.get("completions") or []
    chosen, written = step.get("chosen_completion"), step.get("human_completion")
    picked = chosen is None or (type(chosen) is int and 0 <= chosen < len(completions))
    return picked and all(texts(one, "text") for one in completions) and (not written or texts(written, "text"))


def _verdict(rating: Any, neutral: bool) -> bool | None:
    return next((verdict for value, verdict in ((1, True), (0, neutral), (-1, False)) if number(rating) == value), None)


def _solution(prompt: str, judged: list[tuple[str, bool]]) -> Row:
    steps, labels = ([one[k] for one in judged] for k in (0, 1))
    row = stepwise({"prompt": prompt, "completions": steps, "labels": labels})
    assert isinstance(row, dict)
    return row
