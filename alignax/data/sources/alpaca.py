"""Alpaca: instructions and replies by a language model."""

from typing import Unpack

from alignax.data.counts import Counts
from alignax.data.known import published, texts
from alignax.data.read import Reading
from alignax.data.reshape import Made, Row


def alpaca(
    *, path: str = "tatsu-lab/alpaca", split: str = "train", **reading: Unpack[Reading]
) -> tuple[list[Row], Counts]:
    """Rows {"prompt", "completion"} of Taori et al. 2023, "Stanford Alpaca" (made as in Self-Instruct, 2212.10560).

    Columns: instruction; input, often empty; output; and text, the three in the authors' own template, which is not
    read. The prompt is the instruction and, after an empty line, the input. There is one split: hold out by percent.
    The layout is that of the set's card; the files themselves were not at hand.
    """
    columns = ("instruction", "output")
    return published("alpaca", demonstration, key=prompt, columns=columns, path=path, split=split, **reading)


def demonstration(row: Row) -> Made:
    """An instruction with its input, and the reply."""
    return {"prompt": prompt(row), "completion": row["output"]} if texts(row, *FIELDS) else "missing_field"


def prompt(row: Row) -> str:
    """Instruction, empty line, input; the instruction alone where there is no input."""
    return "\n\n".join(str(row[name]) for name in ("instruction", "input") if row.get(name))


FIELDS = ("instruction", "output")
