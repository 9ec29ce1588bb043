"""GSM8K: grade-school sums with worked solutions."""

from functools import partial
from typing import Unpack

from alignax.data.counts import Counts, DataError
from alignax.data.known import asked, published, texts
from alignax.data.read import Reading
from alignax.data.reshape import Made, Row


def gsm8k(
    *, path: str = "openai/gsm8k", split: str = "train", template: str = "chat", ask: str = "{question}",
    **reading: Unpack[Reading],
) -> tuple[list[Row], Counts]:  # fmt: skip
    """Rows {"prompt", "completion", "answer"} of Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems"
    (2110.14168).

    Columns: question; answer, a worked solution whose last line is "#### N". The completion is the solution as it is,
    that line included, and "answer" the N; under template "plain" a line break parts it from the question. `name` is
    "main" or "socratic"; held out is the set's own test split. `ask` is the prompt as a format of the question, such as
    "{question} End with '#### ' and the number.". Raises DataError for one without the question.
    """
    if "{question}" not in ask:
        raise DataError(f"data.ask = {ask!r}: expected a format with {{question}} in it")
    columns = ("question", "answer")
    return published(
        "gsm8k",
        partial(demonstration, template=template, ask=ask),
        key=lambda row: row.get("question"),
        columns=columns,
        path=path,
        split=split,
        hub=Reading(name="main"),
        **reading,
    )


def demonstration(row: Row, template: str, ask: str = "{question}") -> Made:
    """A sum and its solution."""
    if not texts(row, "question", "answer"):
        return "missing_field"
    answer = row["answer"].rpartition("####")[2].strip()
    return {
        "prompt": asked(ask.replace("{question}", row["question"]), template),
        "completion": row["answer"],
        "answer": answer,
    }
