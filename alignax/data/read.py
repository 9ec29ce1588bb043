"""The rows of a local file, of a folder, or of a data set on the hub, and a held-out split by hash."""

import glob
import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypedDict

from alignax.data.counts import DataError
from alignax.data.files import EXPECTED, SUFFIXES, batched, format_of, quiet, rows_of
from alignax.data.reshape import Row

SPLITS = ("train", "heldout")
JUDGEMENTS = ("label", "tie", "margin", "score")  # columns of a CSV file, which knows no types, that hold no text
Splits = dict[str, Iterable[Row]]  # by their names


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

    Files are JSON lines, JSON or CSV, plain or packed by gzip or zstd, and Parquet or Arrow. `name` is the
    configuration of a set on the hub, `data_dir` a folder within it; `train_split` and `heldout_split` name its splits
    ("": test, else validation). A folder has them too, by the names of its files or by its card; a single file is
    training rows alone. With `heldout_percent` > 0, the held-out rows are those of the training split whose `key`
    hashes below it: the same rows in every run and whatever their order, and rows of one key are never on both sides.
    With 0 they are a split of their own. `max_rows` > 0 takes the first rows of the split, before any are held out;
    with `streaming` no others are fetched. The cells of a CSV file are text, but for the columns named in `judged`,
    which hold numbers, true or false.

    Raises DataError for a missing file, invalid UTF-8, JSON or CSV (with the line), an empty split, an option that a
    single file has no use for, a name the hub lacks.
    """
    if split not in SPLITS:
        raise DataError(f"split = {split!r}: expected one of {', '.join(SPLITS)}")
    if not 0 <= heldout_percent < 100:
        raise DataError(f"data.heldout_percent = {heldout_percent}: expected a percentage of at least 0, below 100")
    if max_rows < 0 or (streaming and not max_rows):
        raise DataError(f"data.max_rows = {max_rows}: expected a number of rows; streaming stops after that many")
    own = (heldout_split,) if heldout_split else ("test", "validation")
    names = (train_split,) if split == "train" or heldout_percent else own
    splits = _splits(path, name, data_dir, train_split, streaming, {*judged})
    chosen = next((name for name in names if name in splits), None)
    if chosen is None:
        raise DataError(
            f"{path} has no {' or '.join(names)} split (found: {', '.join(splits)}): set data.heldout_percent above 0 "
            "to hold out a share of the training rows, or data.train_split and data.heldout_split to names of splits"
        )
    # a JSON null is one that somebody wrote, and counts as a field that is not there; deeper ones are kept
    found = ({name: value for name, value in row.items() if value is not None} for row in splits[chosen])
    rows = list(islice(found, max_rows or None))
    if not any(rows):
        expected = EXPECTED.get(format_of(path) or "", f"rows in {chosen}")
        raise DataError(f"{path} has no rows: expected {expected}")
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


def unless_file(path: str, options: Reading) -> Reading:
    """The options that a published set has on the hub, and so in a folder; a single file has no such parts."""
    return Reading() if Path(path).expanduser().is_file() else options


# ---- the splits of a data set, each with its rows, which are read as they are asked for


def _splits(path: str, name: str, data_dir: str, train: str, streaming: bool, judged: set[str]) -> Splits:
    file = Path(path).expanduser()
    if file.is_dir():
        if not (file / data_dir).is_dir():
            raise DataError(f"data.data_dir = {data_dir!r}: {str(file)!r} has no such folder")
        return _folder(file / data_dir, name, train, judged)
    if file.exists() or file.is_absolute() or path.startswith((".", "~")) or format_of(path) is not None:
        _check_file(file, name, data_dir, train)
        return {train: rows_of(file, judged)}
    return _hub(path, {"name": name, "data_dir": data_dir, "streaming": streaming})


def _check_file(file: Path, name: str, data_dir: str, train: str) -> None:
    if not file.exists():
        raise DataError(f"no data file {str(file)!r}: set data.path to a {', '.join(SUFFIXES)} file or a hub name")
    if format_of(file.name) is None:
        expected = f"{', '.join(SUFFIXES)} (Parquet and Arrow compress inside)"
        raise DataError(f"data file {str(file)!r}: expected a name ending in {expected}")
    for key, value, unset in (("name", name, ""), ("data_dir", data_dir, ""), ("train_split", train, "train")):
        if value != unset:
            raise DataError(f"data.{key} = {value!r}: {str(file)!r} is one file, which has no such part: leave it out")


def _hub(path: str, options: dict) -> Splits:
    import datasets  # here, because a run on generated data does not need it

    try:
        splits = datasets.load_dataset(path, **{key: value for key, value in options.items() if value})
    except Exception as error:  # of many kinds
        raise _out_of_reach(path, error) from error
    return {name: _fetched(path, split) for name, split in splits.items()}


def _fetched(path: str, split: Any) -> Iterator[Row]:
    try:
        yield from batched(split)
    except Exception as error:  # of many kinds
        raise _out_of_reach(path, error) from error


def _out_of_reach(path: str, error: Exception) -> DataError:
    return DataError(
        f"no data set could be loaded from {path!r} ({type(error).__name__}: {error}): set data.path to a local "
        f"{', '.join(SUFFIXES)} file, or to a name that this machine can reach on the hub"
    )


def _folder(folder: Path, name: str, train: str, judged: set[str]) -> Splits:
    """The splits of a folder of files, of any kinds, or of a data set that `datasets` saved."""
    import datasets

    try:
        with quiet():
            if any((folder / own).exists() for own in ("state.json", "dataset_dict.json")):
                saved = datasets.load_from_disk(str(folder))
                splits = saved if isinstance(saved, dict) else {train: saved}
                return {str(split): batched(rows) for split, rows in splits.items()}
            found = _files(folder, name)
    except Exception as error:  # of many kinds
        raise DataError(f"the folder {str(folder)!r} cannot be read as a data set: {error}") from error
    kinds = {split: [file for file in files if format_of(file.name)] for split, files in found.items()}
    if not any(kinds.values()):
        raise DataError(f"no data file in the folder {str(folder)!r}: expected {', '.join(SUFFIXES)} files")
    return {
        split: chain.from_iterable(rows_of(file, judged) for file in files) for split, files in kinds.items() if files
    }


def _files(folder: Path, name: str) -> dict[str, list[Path]]:
    """Which files belong to which split: by the card of a folder that was fetched from the hub, or by their names."""
    from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns

    told, base = _card(folder, name), glob.escape(str(folder))
    if "data_dir" in told:
        base = glob.escape(str(folder / told["data_dir"]))
    patterns = sanitize_patterns(told["data_files"]) if "data_files" in told else get_data_patterns(base)
    found = DataFilesDict.from_patterns(patterns, base_path=base)
    return {str(split): [*map(Path, dict.fromkeys(files))] for split, files in found.items()}  # no file twice


def _card(folder: Path, name: str) -> dict[str, Any]:
    """What the card of a folder says of one of its configurations; nothing, if it has none."""
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    card = folder / "README.md"
    if not card.is_file() or not card.read_text(encoding="utf-8").startswith("---"):
        return {}
    data: Any = DatasetCard.load(card).data
    configs = MetadataConfigs.from_dataset_card_data(data)
    name = name or configs.get_default_config_name() or ""
    if configs and name not in configs:
        raise ValueError(f"its card has the configurations {', '.join(configs)}, not {name!r}: set data.name to one")
    return configs.get(name, {})
