"""Alpaca: instructions and replies by a language model."""

from functools import partial
from typing import Unpack

from alignax.data.counts import Counts
from alignax.data.known import asked, published, texts
from alignax.data.read import Reading
from alignax.data.reshape import Made, Row


def alpaca(
    *, path: str = "tatsu-lab/alpaca", split: str = "train", template: str = "chat", **reading: Unpack[Reading]
) -> tuple[list[Row], Counts]:
    """Rows {"prompt", "completion"} of Taori et al. 2023, "Stanford Alpaca" (made as in Self-Instruct, 2212.10560).

    Columns: instruction; input, often empty; output; and text, the three in the authors' own template, which is not
    read. The prompt is the instruction and, after an empty line, the input; under template "plain" a line break ends
    it. There is one split: hold out by percent. The layout is that of the set's card; the files themselves were not at
    hand.
    """
    columns = ("instruction", "output")
    change = partial(demonstration, template=template)
    return published("alpaca", change, key=prompt, columns=columns, also=("input",), path=path, split=split, **reading)


def demonstration(row: Row, template: str) -> Made:
    """An instruction with its input, and the reply."""
    if not texts(row, *FIELDS):
        return "missing_field"
    return {"prompt": asked(prompt(row), template), "completion": row["output"]}


def prompt(row: Row) -> str:
    """Instruction, empty line, input; the instruction alone where there is no input."""
    return "\n\n".join(str(row[name]) for name in ("instruction", "input") if row.get(name))


FIELDS = ("instruction", "output")
