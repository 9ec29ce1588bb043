"""Data through the `datasets` library: local files and folders, or the hub; errors that name file and line; and a
held-out split by hash.
"""

import contextlib
import csv
import hashlib
import importlib.util
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from alignax.data.counts import DataError
from alignax.data.reshape import Row
from alignax.data.scan import SUFFIXES, format_of, scan, unpacked

SPLITS = ("train", "heldout")
JUDGEMENTS = ("label", "tie", "margin", "score")  # columns of a CSV file, which knows no types, that hold no text


class Reading(TypedDict, total=False):
    """What a source hands on to `read`: keys of config.data for whatever source."""

    heldout_percent: float
    name: str
    data_dir: str
    train_split: str
    heldout_split: str
    streaming: bool
    max_rows: int


def read(
    path: str, *, split: str = "train", key: Callable[[Row], str], heldout_percent: float = 0.0, name: str = "",
    data_dir: str = "", train_split: str = "train", heldout_split: str = "", streaming: bool = False, max_rows: int = 0,
    judged: Iterable[str] = JUDGEMENTS,
) -> list[Row]:  # fmt: skip
    """The rows of one split of a local file, a local folder, or a data set on the hub; null fields left out.

    Files are JSON lines, JSON, CSV, Parquet or Arrow, compressed by gzip or zstd or not. `name` is the configuration of
    a set on the hub, `data_dir` a folder within it; `train_split` and `heldout_split` name its splits ("": test, else
    validation). With `heldout_percent` > 0, the held-out rows are those of the training split whose `key` hashes below
    it: the same rows in every run and whatever their order, and rows of one key are never on both sides. With 0 they
    are a split of their own, which a single file does not have. `max_rows` > 0 takes the first rows of the split,
    before any are held out; with `streaming` no others are fetched. The cells of a CSV file are text, but for the
    columns named in `judged`, which hold numbers, true or false.

    Raises DataError for a missing file, invalid UTF-8 or JSON (with the line), an empty split, a name the hub lacks.
    """
    if split not in SPLITS:
        raise DataError(f"split = {split!r}: expected one of {', '.join(SPLITS)}")
    if not 0 <= heldout_percent < 100:
        raise DataError(f"data.heldout_percent = {heldout_percent}: expected a percentage of at least 0, below 100")
    if max_rows < 0 or (streaming and not max_rows):
        raise DataError(f"data.max_rows = {max_rows}: expected a number of rows; streaming stops after that many")
    own = (heldout_split,) if heldout_split else ("test", "validation")
    names = (train_split,) if split == "train" or heldout_percent else own
    options = {"name": name, "data_dir": data_dir, "streaming": streaming}
    rows = _load(path, names, train_split, {k: v for k, v in options.items() if v}, max_rows, {*judged})
    if heldout_percent:
        rows = [row for row in rows if is_heldout(key(row), heldout_percent) == (split == "heldout")]
    if not rows:
        raise DataError(f"{path}: the {split} split has no rows (data.heldout_percent = {heldout_percent})")
    return rows


def is_heldout(key: str, percent: float) -> bool:
    """sha256(key), as a fraction of its range, is below `percent` / 100."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < percent / 100 * 2**64


def check_columns(
    path: str, rows: list[Row], columns: Iterable[str], source: str, expected: str, whose: str = ""
) -> None:
    """Raises DataError if a column is empty in all rows; names file, column, `whose` column, and what was found."""
    found = sorted({name for row in rows for name in row})
    for column in columns:
        if column not in found:
            raise DataError(
                f"{path}: no row has the field {column!r}{whose}: found {', '.join(found) or 'none'}; "
                f"source {source!r} expects {expected}"
            )


def _load(path: str, names: tuple[str, ...], train: str, options: dict, max_rows: int, judged: set[str]) -> list[Row]:
    file = Path(path).expanduser()
    local = file.exists() or file.is_absolute() or path.startswith((".", "~")) or format_of(path) is not None
    if local and not file.is_dir():
        _check_name(file)
    try:
        with _quiet() if local else contextlib.nullcontext():
            splits = _open(file, train, options, judged) if local else _hub(path, options)
            dataset = next((splits[name] for name in names if name in splits), None)
            rows = [] if dataset is None else _rows(dataset, max_rows)
    except Exception as error:  # of many kinds, and none of them names the line
        raise _explained(path, file if local else None, error) from error
    if dataset is None:
        raise DataError(
            f"{path} has no {' or '.join(names)} split (found: {', '.join(splits)}): set data.heldout_percent above 0 "
            "to hold out a share of the training rows, or data.train_split and data.heldout_split to names of splits"
        )
    if local and not file.is_dir() and format_of(path) == "csv":
        rows = [_typed(row, judged, file) for row in rows]
    # a JSON null is one that somebody wrote; a table has one for each key that another row has
    deep = not local or file.is_dir() or format_of(path) != "json"
    return [
        {name: _clean(value) if deep else value for name, value in row.items() if value is not None} for row in rows
    ]


def _check_name(file: Path) -> None:
    if not file.exists():
        raise DataError(f"no data file {str(file)!r}: set data.path to a {', '.join(SUFFIXES)} file or a hub name")
    if format_of(file.name) is None:
        raise DataError(f"data file {str(file)!r}: expected a name ending in {', '.join(SUFFIXES)}")
    if file.suffix == ".zst" and importlib.util.find_spec("zstandard") is None:
        raise DataError(f"data file {str(file)!r}: zstd needs a package that is not installed: pip install zstandard")


def _hub(path: str, options: dict) -> Any:
    import datasets  # here, because a run on generated data does not need it

    return datasets.load_dataset(path, **options)


def _open(file: Path, train: str, options: dict, judged: set[str]) -> Any:
    """The splits of a local file, which is all training rows, or of a folder of files or of a saved data set."""
    import datasets

    if file.is_dir():
        if any((file / name).exists() for name in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(str(file))
            return saved if isinstance(saved, dict) else {train: saved}
        return datasets.load_dataset(str(file), **options)
    reader = format_of(file.name)
    own: dict[str, Any] = {"streaming": True} if "streaming" in options else {}
    if reader == "csv":
        with unpacked(file) as stream:
            header = next(csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline="")), [])
        own["features"] = datasets.Features({name: datasets.Value("string") for name in header})
        own["keep_default_na"] = False  # "NA" and "null" are words
    return {train: datasets.load_dataset(str(reader), data_files=str(file), split="train", **own)}


def _rows(dataset: Any, max_rows: int) -> list[Row]:
    import datasets

    if isinstance(dataset, datasets.IterableDataset):
        return list(dataset.take(max_rows))
    columns = dataset[: max_rows or len(dataset)]
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _clean(value: Any) -> Any:
    """The value without the null keys of what it holds."""
    if isinstance(value, dict):
        return {name: _clean(inner) for name, inner in value.items() if inner is not None}
    return [_clean(inner) for inner in value] if isinstance(value, list) else value


def _typed(row: Row, judged: set[str], file: Path) -> Row:
    """A row of a CSV file with its judgements as numbers, true or false, and without its empty cells."""
    row = {name: cell for name, cell in row.items() if cell not in (None, "")}
    for name in judged & set(row):
        try:
            row[name] = json.loads(row[name].lower())
        except json.JSONDecodeError as error:
            raise DataError(
                f"{file}: column {name!r} holds {row[name][:80]!r}: expected a number, true or false"
            ) from error
    return row


def _explained(path: str, local: Path | None, error: Exception) -> DataError:
    """What is wrong with data that could not be loaded: the file and line, if a local file can be found to be wrong."""
    if local is None:
        return DataError(
            f"no data set could be loaded from {path!r} ({type(error).__name__}: {error}): set data.path to a local "
            f"{', '.join(SUFFIXES)} file, or to a name that this machine can reach on the hub"
        )
    files = [local] if local.is_file() else [file for file in sorted(local.rglob("*")) if format_of(file.name)]
    for file in files:
        scan(file)
    told = f"{error.__cause__ or error!r}"
    kinds = {"json": "JSON lines", "csv": "CSV", "parquet": "Parquet", "arrow": "Arrow"}
    kind = kinds[format_of(local.name) or "json"] if local.is_file() else f"a folder of {', '.join(SUFFIXES)} files"
    return DataError(f"{local} cannot be read as {kind}: {told}: mend it, or fetch it again")


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
