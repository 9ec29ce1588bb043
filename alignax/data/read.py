"""The rows of a local file, of a folder, or of a data set on the hub, and a held-out split by hash."""

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypedDict, cast

from alignax.data.counts import DataError
from alignax.data.files import EXPECTED, SUFFIXES, fetched, format_of, rows_of
from alignax.data.reshape import Row

SPLITS = ("train", "heldout")
JUDGEMENTS = ("label", "tie", "margin", "score")  # columns of a CSV file, which knows no types, that hold no text
Splits = dict[str, Iterable[Row]]  # by their names
UNSET = {"name": "", "data_dir": "", "train_split": "train"}  # which part of a data set is meant: all of it


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
    path: str | list[str], *, split: str = "train", key: Callable[[Row], str], heldout_percent: float = 0.0,
    name: str = "", data_dir: str = "", train_split: str = "train", heldout_split: str = "", streaming: bool = False,
    max_rows: int = 0, judged: Iterable[str] = JUDGEMENTS,
) -> list[Row]:  # fmt: skip
    """The rows of one split of a local file, a local folder, or a data set on the hub; null fields left out.

    Several paths are read one after the other: their union, of which a split is by the rows of all.

    Files are JSON lines, JSON or CSV, plain or packed by gzip or zstd, and Parquet or Arrow. A folder has splits by the
    names of its files or by its card; a single file is training rows alone.

    Args:
      key: what a held-out row is chosen by; rows of one key are never on both sides.
      heldout_percent: above 0, the held-out rows are those of the training split whose `key` hashes below it: the same
        rows in every run and whatever their order. With 0 they are a split of their own.
      name: the configuration of a set on the hub, or of a folder whose card names some; `data_dir`: a folder within it.
      train_split, heldout_split: names of the splits ("": test, else validation).
      max_rows: above 0, the first rows of the split, before any are held out; with `streaming` no others are fetched.
      judged: columns of a CSV file that hold numbers, true or false; other cells are text, an empty one is a field that
        is not there.

    Raises:
      DataError: a missing file, invalid UTF-8, JSON or CSV (with the line), an empty split, a file of a folder that is
        of no known kind or in both splits, an option that nothing reads there, a name the hub lacks.
    """
    if split not in SPLITS:
        raise DataError(f"split = {split!r}: expected one of {', '.join(SPLITS)}")
    if not 0 <= heldout_percent < 100:
        raise DataError(f"data.heldout_percent = {heldout_percent}: expected a percentage of at least 0, below 100")
    if max_rows < 0 or (streaming and not max_rows):
        raise DataError(f"data.max_rows = {max_rows}: expected a number of rows; streaming stops after that many")
    held = (heldout_split,) if heldout_split else ("test", "validation")
    names, held = (train_split,) if split == "train" or heldout_percent else held, () if heldout_percent else held
    part = {"name": name, "data_dir": data_dir, "train_split": train_split}
    paths = [path] if isinstance(path, str) else path
    if not paths:
        raise DataError("data.path names no file: expected one, or a list of them")
    rows = []
    for one in paths:
        rows += _rows(one, names, _splits(one, part, held, streaming, {*judged}), max_rows)
    path = ", ".join(paths)
    if heldout_percent:
        rows = [row for row in rows if is_heldout(key(row), heldout_percent) == (split == "heldout")]
    if not rows:
        raise DataError(f"{path}: the {split} split has no rows (data.heldout_percent = {heldout_percent})")
    return rows


def _rows(path: str, names: tuple[str, ...], splits: Splits, max_rows: int) -> list[Row]:
    """The rows of the first of these splits that is there."""
    chosen = next((name for name in names if name in splits), None)
    if chosen is None:
        raise DataError(
            f"{path} has no {' or '.join(names)} split (found: {', '.join(splits)}): set data.heldout_percent above 0 "
            "to hold out a share of the training rows, or data.train_split and data.heldout_split to names of splits"
        )
    # a null, whether somebody wrote it or a table pads its rows with it, counts as a field that is not there; deeper
    # ones are left to what reads the field (`messages.py`)
    found = ({name: value for name, value in row.items() if value is not None} for row in splits[chosen])
    rows = list(islice(found, max_rows or None))
    if not any(rows):
        expected = EXPECTED.get(format_of(path) or "", f"rows in {chosen}")
        raise DataError(f"{path} has no rows: expected {expected}")
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


def with_defaults(path: str, defaults: Reading, given: Reading) -> Reading:
    """The options that are given, and those that a published set has on the hub, unless nothing reads them here."""
    if Path(path).expanduser().is_file():
        return given
    gone = unread(path, given.get("data_dir") or defaults.get("data_dir") or "")
    return cast(Reading, {name: value for name, value in defaults.items() if name not in gone} | {**given})


def unread(path: str, data_dir: str) -> dict[str, str]:
    """Of the options that say which part of a data set is meant those that nothing reads there, and why."""
    place = Path(path).expanduser()
    if place.is_dir():
        from alignax.data import folders  # here, because a run on generated data needs no `datasets`

        return folders.unread(place / data_dir)
    return dict.fromkeys(UNSET, "is one file, which has no such part") if place.exists() else {}


# ---- the splits of a data set, each with its rows, which are read as they are asked for


def _splits(path: str, part: dict[str, str], held: tuple[str, ...], streaming: bool, judged: set[str]) -> Splits:
    place, train = Path(path).expanduser(), part["train_split"]
    if place.is_dir():
        from alignax.data import folders  # here, because a run on generated data needs no `datasets`

        folder = place / part["data_dir"]
        if not folder.is_dir():
            raise DataError(f"data.data_dir = {part['data_dir']!r}: {str(place)!r} has no such folder")
        _check_part(path, part)
        return folders.splits_of(folder, name=part["name"], train=train, held=held, judged=judged)
    if place.exists() or place.is_absolute() or path.startswith((".", "~")) or format_of(path) is not None:
        _check_file(place)
        _check_part(path, part)
        return {train: rows_of(place, judged)}
    return _hub(path, {"name": part["name"], "data_dir": part["data_dir"], "streaming": streaming})


def _check_file(file: Path) -> None:
    if not file.exists():
        raise DataError(f"no data file {str(file)!r}: set data.path to a {', '.join(SUFFIXES)} file or a hub name")
    if format_of(file.name) is None:
        expected = f"{', '.join(SUFFIXES)} (Parquet and Arrow compress inside)"
        raise DataError(f"data file {str(file)!r}: expected a name ending in {expected}")


def _check_part(path: str, part: dict[str, str]) -> None:
    """Raises DataError for an option that nothing reads at this path."""
    for key, why in unread(path, part["data_dir"]).items():
        if part[key] != UNSET[key]:
            raise DataError(f"data.{key} = {part[key]!r}: {str(Path(path).expanduser())!r} {why}: leave it out")


def _hub(path: str, options: dict) -> Splits:
    import datasets  # here, because a run on generated data does not need it

    try:
        splits = datasets.load_dataset(path, **{key: value for key, value in options.items() if value})
    except Exception as error:  # of many kinds
        raise _out_of_reach(path, error) from error
    fault = partial(_out_of_reach, path)  # a download keeps its progress bars
    return {name: fetched(lambda split=split: split, fault, loud=True) for name, split in splits.items()}


def _out_of_reach(path: str, error: Exception) -> DataError:
    return DataError(
        f"no data set could be loaded from {path!r} ({type(error).__name__}: {error}): set data.path to a local "
        f"{', '.join(SUFFIXES)} file, or to a name that this machine can reach on the hub"
    )
