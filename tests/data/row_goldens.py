"""Rows of the tokenizers in conftest.py as plain lists, to compare arrays with."""

EOS = 3


def layout(ids: list[int], length: int, fill: int, start: int) -> tuple[list, list, list]:
    """tokens, valid and mask of one right-padded row, written with plain lists."""
    padding = length - len(ids)
    return (
        ids + [fill] * padding,
        [True] * len(ids) + [False] * padding,
        [start <= t < len(ids) for t in range(length)],
    )


def check_row(batch, i, expected):
    for name, value in zip(("tokens", "valid", "mask"), expected, strict=True):
        assert batch[name][i].tolist() == value, name
