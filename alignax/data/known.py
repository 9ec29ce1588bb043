"""What the published data sets of `sources/` share: read, check the columns, change each row, count."""

from collections.abc import Callable, Iterable
from typing import Any, Unpack

from alignax.data.columns import filled
from alignax.data.counts import Counts
from alignax.data.forms import each
from alignax.data.read import Reading, check_columns, read, with_defaults
from alignax.data.reshape import Made, Row, key_of


def published(
    source: str,
    change: Callable[[Row], Made],
    *,
    path: str,
    split: str,
    key: Callable[[Row], object],
    columns: Iterable[str],
    also: Iterable[str] = (),
    judged: Iterable[str] = (),
    hub: Reading | None = None,
    **reading: Unpack[Reading],
) -> tuple[list[Row], Counts]:
    """The rows of a published set, each changed by `change` (the row, several, or the reason why none), and the counts.

    `columns` are those that some row must have, `also` others that are read, and `judged` those that hold numbers; any
    further one is named in the counts. Rows of the same `key` are held out together. `hub` has the options of the set
    on the hub that are not given. Raises DataError as `read` does, for a column that no row has, and if no row is left.
    """
    options = with_defaults(path, hub or {}, reading)
    rows = read(path, split=split, key=lambda row: key_of(key(row)), judged=judged, **options)
    check_columns(path, rows, columns, source, f"the columns {', '.join(columns)}")
    made, counts = each(rows, change)
    counts.leave({name for row in rows for name in filled(row)} - {*columns, *also, *judged})
    counts.made = {name for row in made for name in row}
    counts.require_rows(f"row of {source} in {path}")
    return made, counts


def texts(row: Any, *columns: str) -> bool:
    """Whether this is a row, or a part of one, of which these columns all hold text."""
    return isinstance(row, dict) and all(isinstance(row.get(column), str) for column in columns)


def asked(question: Any, template: str) -> Any:
    """A question that has no layout of its own: under the template "plain" a line break parts it from what follows."""
    return f"{question.rstrip()}\n" if template == "plain" and isinstance(question, str) else question
