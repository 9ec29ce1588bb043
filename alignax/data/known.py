"""What the published data sets of `sources/` share: read, check the columns, change each row, count."""

from collections.abc import Callable, Iterable
from typing import Unpack

from alignax.data.counts import Counts
from alignax.data.forms import each
from alignax.data.read import Reading, check_columns, read
from alignax.data.reshape import Made, Row, key_of


def published(
    source: str,
    change: Callable[[Row], Made],
    *,
    path: str,
    split: str,
    key: Callable[[Row], object],
    columns: Iterable[str],
    **reading: Unpack[Reading],
) -> tuple[list[Row], Counts]:
    """The rows of a published set, each changed by `change` (the row, several, or the reason why none), and the counts.

    `columns` are those that some row must have; rows of the same `key` are held out together. Raises DataError as
    `read` does, for a column that no row has, and if no row is left.
    """
    rows = read(path, split=split, key=lambda row: key_of(key(row)), **reading)
    check_columns(path, rows, columns, source, f"the columns {', '.join(columns)}")
    rows, counts = each(rows, change)
    counts.require_rows(f"row of {source} in {path}")
    return rows, counts


def texts(row: Row, *columns: str) -> bool:
    """Whether these columns of a row all hold text."""
    return all(isinstance(row.get(column), str) for column in columns)
