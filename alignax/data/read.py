"""Data files through the `datasets` library, errors that name file and line, and a held-out split by hash."""

import contextlib
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alignax.data.counts import DataError

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
SPLITS = ("train", "heldout")
Row = dict[str, Any]


def read(
    path: str, *, split: str, heldout_percent: float, key: Callable[[Row], str], data_dir: str | None = None
) -> list[Row]:
    """The rows of one split of a local JSON-lines file, a local folder, or a data set on the hub; null fields left out.

    With `heldout_percent` > 0, the held-out rows are those of the training split whose `key` hashes below it: the same
    rows in every run and whatever their order, and rows of one key are never on both sides. With 0 they are the data
    set's own test split, which a single file does not have.

    Raises DataError for a missing file, invalid UTF-8 or JSON (with the line), an empty split, a name the hub lacks.
    """
    if split not in SPLITS:
        raise DataError(f"split = {split!r}: expected one of {', '.join(SPLITS)}")
    if not 0 <= heldout_percent < 100:
        raise DataError(f"data.heldout_percent = {heldout_percent}: expected a percentage of at least 0, below 100")
    names = ("train",) if split == "train" or heldout_percent else ("test", "validation")
    rows = _load(path, names, data_dir)
    if heldout_percent:
        rows = [row for row in rows if is_heldout(key(row), heldout_percent) == (split == "heldout")]
    if not rows:
        raise DataError(f"{path}: the {split} split has no rows (data.heldout_percent = {heldout_percent})")
    return rows


def is_heldout(key: str, percent: float) -> bool:
    """sha256(key), as a fraction of its range, is below `percent` / 100."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < percent / 100 * 2**64


def _load(path: str, names: tuple[str, ...], data_dir: str | None) -> list[Row]:
    file = Path(path).expanduser()
    local = file.exists() or file.is_absolute() or path.startswith((".", "~")) or path.endswith(SUFFIXES)
    if local and not file.is_dir():
        return _pick({"train": _load_file(file)}, names, path)
    return _rows(_pick(_load_set(path, data_dir), names, path))


def _pick(splits: Any, names: tuple[str, ...], path: str) -> Any:
    for name in names:
        if name in splits:
            return splits[name]
    raise DataError(
        f"{path} has no {' or '.join(names)} split (found: {', '.join(splits)}): set data.heldout_percent above 0 to "
        "hold out a share of the training rows"
    )


def _rows(dataset: Any) -> list[Row]:
    columns = dataset[:]
    rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _load_file(file: Path) -> list[Row]:
    import datasets  # here, because a run on generated data does not need it

    if not file.exists():
        raise DataError(f"no data file {str(file)!r}: set data.path to a {', '.join(SUFFIXES)} file or a hub name")
    if not file.name.endswith(SUFFIXES):
        raise DataError(f"data file {str(file)!r}: expected a name ending in {', '.join(SUFFIXES)}")
    try:
        with _quiet():
            return _rows(datasets.load_dataset("json", data_files=str(file), split="train"))  # decodes the text
    except Exception as error:  # of many kinds, and none of them names the line
        scan(file)
        raise DataError(f"{file} cannot be read as JSON lines: {error.__cause__ or error!r}") from error


def _load_set(path: str, data_dir: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, data_dir=data_dir)
    except Exception as error:  # of many kinds: no network, no such name, no such folder
        raise DataError(
            f"no data set could be loaded from {path!r} ({type(error).__name__}: {error}): set data.path to a local "
            f"{', '.join(SUFFIXES)} file, or to a name that this machine can reach on the hub"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars for local files; a download keeps its own."""
    import datasets

    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def scan(file: Path) -> None:
    """Reads again a file that could not be loaded, by lines: DataError names the file, the line and what is wrong."""
    lines = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            if stream.read(1) == b"[":
                _check_list(file, b"[" + stream.read())
            stream.seek(0)
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
