"""Why a data file cannot be read: it is read again, by lines, until a DataError can name the one that is wrong."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

from alignax.data.counts import DataError

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
PACKED = (".gz", ".zst")
SUFFIXES = tuple(f"{suffix}[{'|'.join(PACKED)}]" for suffix in FORMATS)  # as people write them


def format_of(name: str) -> str | None:
    """The reader of a file by its name: json, csv, parquet or arrow; None for another name."""
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((reader for suffix, reader in FORMATS.items() if name.endswith(suffix)), None)


def unpacked(file: Path) -> Any:
    """The bytes of a file that may be compressed: a stream, of a type that the suffix decides."""
    if file.suffix == ".gz":
        return gzip.open(file)
    if file.suffix == ".zst":
        import pyarrow  # reads zstd without a further package

        return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"))
    return file.open("rb")


def scan(file: Path) -> None:
    """Reads a file by lines. Raises DataError with the file, the line and what is wrong, if that can be found."""
    try:
        if format_of(file.name) == "json":
            _scan_json(file)
        elif format_of(file.name) == "csv":
            _scan_csv(file)
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise DataError(f"{file} is damaged ({error}): fetch it again") from error


def _scan_json(file: Path) -> None:
    lines = 0
    with unpacked(file) as stream:
        if stream.read(1) == b"[":
            _check_list(file, b"[" + stream.read())
    try:
        with unpacked(file) as stream:
            for line in stream:
                lines += 1
                if line.strip():
                    _check_line(f"{file}, line {lines}", line)
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise DataError(f"{file} is damaged after line {lines} ({error}): fetch it again") from error
    if not lines:
        raise DataError(f"{file} is empty: expected one JSON object per line")


def _check_line(where: str, line: bytes) -> None:
    try:
        row = json.loads(line.decode("utf-8-sig"))
        json.dumps(row, ensure_ascii=False).encode()  # a lone surrogate is valid JSON, but no text
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: invalid UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: a lone surrogate escape is no text ({error.reason}): remove it") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: invalid JSON ({error.msg} at column {error.colno}): expected one object") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {type(row).__name__}, expected one object per line")


def _check_list(file: Path, content: bytes) -> None:
    """One JSON list over many lines: its faults have a line too."""
    try:
        json.loads(content)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{file}, line {line}: invalid UTF-8 ({error.reason}): save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: invalid JSON ({error.msg} at column {error.colno})") from error
    raise DataError(f"{file}: expected one JSON object per line, or a list of objects")


def _scan_csv(file: Path) -> None:
    header: list[str] = []
    with unpacked(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise DataError(f"{file}, line {number}: invalid UTF-8 ({error.reason}): save it as UTF-8") from error
    with unpacked(file) as stream:
        reader = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""))
        for cells in reader:
            header = header or cells
            if len(cells) > len(header):
                raise DataError(
                    f"{file}, line {reader.line_num}: {len(cells)} cells, expected the {len(header)} of the header: "
                    'put text with commas or line breaks between "double quotes"'
                )
    if not header:
        raise DataError(f"{file} is empty: expected a header with the names of the columns")
