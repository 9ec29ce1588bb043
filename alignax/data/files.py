"""The rows of one local file as an iterator, from which the first can be taken; errors that name the file and the line.

Text is read by the standard library: nothing guesses what a column holds, no row depends on the others, nothing of an
older file is remembered.
"""

import contextlib
import csv
import glob
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alignax.data.counts import DataError
from alignax.data.reshape import Row
from alignax.data.values import is_absent, keys_once, truth

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
PACKED = (".gz", ".zst")
TEXT = ("json", "csv")  # what may be packed: Parquet and Arrow compress inside
SUFFIXES = tuple(name + (f"[{'|'.join(PACKED)}]" if kind in TEXT else "") for name, kind in FORMATS.items())
EXPECTED = {
    "json": "one JSON object per line, or a list of objects",
    "csv": "a header with the names of the columns, then rows",
}
BEGINS = re.compile(r"[^\s,]")  # the next item of a JSON list, or its end
csv.field_size_limit(2**31 - 1)  # a text may be longer than the 131,072 characters that the module allows


def format_of(name: str) -> str | None:
    """The reader of a file by its name: json, csv, parquet or arrow; None for another name."""
    for suffix, kind in FORMATS.items():
        if name.endswith(suffix) or (kind in TEXT and name.endswith(tuple(suffix + packed for packed in PACKED))):
            return kind
    return None


def rows_of(file: Path, judged: set[str]) -> Iterator[Row]:
    """The rows of a file, read as they are asked for; of a CSV file the columns `judged` hold numbers, true or false.

    Raises DataError for what cannot be read, as soon as it is come to.
    """
    kind = format_of(file.name)
    if kind == "json":
        return _json_rows(file)
    return _csv_rows(file, judged) if kind == "csv" else _table_rows(file, str(kind))


def unpacked(file: Path) -> Any:
    """The bytes of a file that may be compressed: a stream, of a type that the suffix decides."""
    if file.suffix == ".gz":
        return gzip.open(file)
    if file.suffix == ".zst":
        import pyarrow  # reads zstd without a further package

        return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"))
    return file.open("rb")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """`datasets` without progress bars and log lines, for local files; a download keeps its own."""
    import datasets

    bars, level = not datasets.are_progress_bars_disabled(), datasets.utils.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.utils.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def fetched(load: Callable[[], Any], fault: Callable[[Exception], DataError], *, loud: bool = False) -> Iterator[Row]:
    """The rows of a set of the library `datasets`, which `load` gives, with the nulls by which a table pads them.
    Whatever goes wrong, at any row, is raised as the `fault` that it makes; `loud`: not `quiet`."""
    batches: Any = None
    while True:
        try:  # around each step alone: between them the process is somebody else's
            with contextlib.nullcontext() if loud else quiet():
                batches = batches or load().iter(batch_size=100)
                columns = next(batches, None)
        except Exception as error:  # of many kinds
            raise fault(error) from error
        if columns is None:
            return
        yield from (dict(zip(columns, values)) for values in zip(*columns.values()))


def _table_rows(file: Path, kind: str) -> Iterator[Row]:
    import datasets

    def fault(error: Exception) -> DataError:
        message = f"{file} cannot be read as {kind.capitalize()}: {error.__cause__ or error!r}"
        return DataError(f"{message}: mend it, or fetch it again")

    # streamed, which keeps no copy: that would be found again by name and time, whatever is in the file now
    options = {"data_files": glob.escape(str(file)), "split": "train", "streaming": True}
    return fetched(lambda: datasets.load_dataset(kind, **options), fault)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers."""
    number = 0
    try:
        with unpacked(file) as stream:
            for number, line in enumerate(stream, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        where = f"{file}, line {number}: invalid UTF-8 ({error.reason} at byte {error.start})"
        raise DataError(f"{where}: save it as UTF-8") from error
    except PermissionError as error:
        raise DataError(f"data file {str(file)!r}: {error.strerror}: change its permissions") from error
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{file} is damaged after line {number} ({error}): fetch it again") from error


# ---- JSON: an object in each line, or one list


def _json_rows(file: Path) -> Iterator[Row]:
    lines = _lines(file)
    first, begun = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if begun.lstrip().startswith("["):
        text = begun + "".join(line for _, line in lines)
        for number, row in enumerate(_parsed(file, first, text.rstrip(), listed=True), 1):
            yield _object(f"{file}, item {number} of the list", row)
        return
    for number, line in itertools.chain([(first, begun)], lines):
        if line.strip():
            yield _object(f"{file}, line {number}", _parsed(file, number, line.rstrip()))


def _parsed(file: Path, first: int, text: str, listed: bool = False) -> Any:
    """What a JSON text says that begins in the line `first`; `listed`: it is all of the file, one list."""
    try:
        return _value(text)
    except json.JSONDecodeError as error:
        where = f"{file}, line {first + error.lineno - 1}: invalid JSON ({error.msg} at column {error.colno})"
        raise DataError(f"{where}: expected {EXPECTED['json']}") from error
    except (ValueError, RecursionError) as error:
        item = _bad_item(text) if listed else 0
        where = f"{file}, item {item} of the list" if item else f"{file}, line {first}"
        if isinstance(error, UnicodeEncodeError):
            raise DataError(f"{where}: a lone surrogate escape is no text: remove it") from error
        raise DataError(f"{where}: JSON that cannot be read ({error}): mend it") from error


def _value(text: str) -> Any:
    """What a JSON text says, if all of it is text, numbers that Python reads, and keys that an object has once."""
    value = json.loads(text, object_pairs_hook=keys_once)
    if "\\u" in text:  # a lone surrogate is valid JSON, but no text
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _bad_item(text: str) -> int:
    """The first item of a JSON list that `_value` cannot read, counted from 1; 0 if it reads each by itself."""
    at, decoder = text.index("[") + 1, json.JSONDecoder()
    for number in itertools.count(1):
        begins = BEGINS.search(text, at)
        if begins is None or begins[0] == "]":
            break
        try:
            _, at = decoder.raw_decode(text, begins.start())
            _value(text[begins.start() : at])
        except (ValueError, RecursionError):
            return number
    return 0


def _object(where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: a JSON {type(value).__name__}, expected {EXPECTED['json']}")
    return value


# ---- CSV: a header, then cells of text


def _csv_rows(file: Path, judged: set[str]) -> Iterator[Row]:
    header: list[str] = []
    for line, cells in _csv_cells(file):
        if not header:
            header = _header(f"{file}, line {line}", cells)
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{file}, line {line}: {len(cells)} cells, expected the {len(header)} of the header: "
                'put text with commas or line breaks between "double quotes"'
            )
        row = {name: cell for name, cell in zip(header, cells) if name and cell}
        yield row | {name: _judgement(f"{file}, line {line}", name, row[name]) for name in judged & set(row)}


def _csv_cells(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells of each row that has some, and the line where it begins."""
    line = 1
    reader = csv.reader((text for _, text in _lines(file)), strict=True)
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        open_quote = "a quote that is never closed" if "end of data" in str(error) else str(error)
        raise DataError(
            f"{file}, line {line}: the row that begins here is no CSV ({open_quote}): put text with quotes between "
            '"double quotes", and each quote within it twice'
        ) from error


def _header(where: str, cells: list[str]) -> list[str]:
    """The names of the columns; the first may have none, and is then the index that pandas writes, not read."""
    for number, name in enumerate(cells, 1):
        if name in cells[: number - 1] or (not name and number > 1):
            wrong = f"has the column {name!r} twice" if name else f"has no name for column {number}"
            raise DataError(f"{where}: the header {wrong}: give each column a name of its own")
    return cells


def _judgement(where: str, column: str, cell: str) -> Any:
    """The number, true or false that a cell of text holds, or a word for one of these ("yes"); None where it says that
    there is none. A label may be any word: that of a class."""
    with contextlib.suppress(ValueError):
        value = json.loads(cell.lower())
        if isinstance(value, (bool, int, float)):
            return value
    if is_absent(cell):
        return None
    if column == "label" or truth(cell) is not None:
        return cell
    wrong = f"column {column!r} holds {cell[:80]!r}"
    raise DataError(f"{where}: {wrong}: expected a number, true or false, or an empty cell for none")
