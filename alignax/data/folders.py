"""A local folder as a data set: files of any kinds, by their names or by its card, or a set that `datasets` saved.

Imported where a folder is read, because a run on generated data needs no `datasets`.
"""

import contextlib
import glob
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

from alignax.data.counts import DataError
from alignax.data.files import SUFFIXES, fetched, format_of, quiet, rows_of
from alignax.data.reshape import Row

# what lies beside the data of a folder, if it is of no known kind: not read, and not missed
BESIDE = re.compile(r"(?i)[._].*|(readme|licen[cs]e).*|.*\.(md|py|pdf|png|jpe?g|gif|svg|webp)")


def splits_of(
    folder: Path, *, name: str, train: str, held: tuple[str, ...], judged: set[str]
) -> dict[str, Iterable[Row]]:
    """The splits of a folder, each with its rows, which are read as they are asked for.

    A saved set without splits is one of the name `train`. Raises DataError where nothing can be read, for a file that
    is in `train` and in the first of `held` that is there, and, as its rows are asked for, for a split with files of
    no known kind.
    """
    if saved_as(folder):
        with _reading(folder), quiet():
            saved: Any = datasets.load_from_disk(str(folder))
        fault = partial(_fault, folder)
        parts = saved if isinstance(saved, dict) else {train: saved}
        return {str(split): fetched(lambda rows=rows: rows, fault) for split, rows in parts.items()}
    with _reading(folder), quiet():
        found = _files(folder, name)
    data = lambda file: format_of(file.name) or not BESIDE.fullmatch(file.name)  # noqa: E731
    mine = {split: [*filter(data, files)] for split, files in found.items()}
    if not any(format_of(file.name) for files in mine.values() for file in files):
        raise DataError(f"no data file in the folder {str(folder)!r}: expected {', '.join(SUFFIXES)} files")
    mine = {split: files for split, files in mine.items() if files}
    heldout = next((split for split in held if split in mine), train)
    if heldout != train and (both := sorted({*mine.get(train, ())} & {*mine[heldout]})):
        raise DataError(
            f"{_names(both)} in the folder {str(folder)!r}: of the splits {train!r} and {heldout!r} alike, so that "
            "held-out rows would be trained on; rename it, or hold out a share by data.heldout_percent"
        )
    return {split: _rows(folder, split, files, judged) for split, files in mine.items()}


def unread(folder: Path) -> dict[str, str]:
    """Of the options that say which part of a data set is meant those that nothing reads in this folder, and why."""
    if kind := saved_as(folder):
        alone = {"train_split": "is one saved Dataset, which has no splits"} if kind == "Dataset" else {}
        return {"name": f"is a saved {kind}, which has no configurations"} | alone
    with _reading(folder):
        return {} if _configs(folder) else {"name": "has no card that names configurations"}


def saved_as(folder: Path) -> str:
    """The class of the set that `datasets` saved as this folder; "" for a folder of files."""
    kinds = {"state.json": "Dataset", "dataset_dict.json": "DatasetDict"}
    return next((kind for name, kind in kinds.items() if (folder / name).exists()), "")


def _rows(folder: Path, split: str, files: list[Path], judged: set[str]) -> Iterator[Row]:
    """The rows of the files of a split. Raises DataError if there is one that cannot be read: no data are left out."""
    if strange := [file for file in files if format_of(file.name) is None]:
        raise DataError(
            f"{_names(strange)} in the folder {str(folder)!r}: of the split {split!r}, and of no kind that is read; "
            f"expected names ending in {', '.join(SUFFIXES)}: repack it, or take it out of the folder"
        )
    for file in files:
        yield from rows_of(file, judged)


def _files(folder: Path, name: str) -> dict[str, list[Path]]:
    """Which files belong to which split: by the card of a folder that was fetched from the hub, or by their names."""
    config, base = _config(folder, name), glob.escape(str(folder))
    if "data_dir" in config:
        base = glob.escape(str(folder / config["data_dir"]))
    patterns = sanitize_patterns(config["data_files"]) if "data_files" in config else get_data_patterns(base)
    found = DataFilesDict.from_patterns(patterns, base_path=base)
    return {str(split): [*map(Path, dict.fromkeys(files))] for split, files in found.items()}  # no file twice


def _config(folder: Path, name: str) -> dict[str, Any]:
    """What the card of a folder says of one of its configurations; nothing, if it has none."""
    configs = _configs(folder)
    name = name or configs.get_default_config_name() or ""
    if configs and name not in configs:
        raise ValueError(f"its card has the configurations {', '.join(configs)}, not {name!r}: set data.name to one")
    return configs.get(name, {})


def _configs(folder: Path) -> MetadataConfigs:
    """What the card of a folder says of each of its configurations."""
    card = folder / "README.md"
    if not card.is_file() or not card.read_text(encoding="utf-8").startswith("---"):
        return MetadataConfigs()
    data: Any = DatasetCard.load(card).data
    return MetadataConfigs.from_dataset_card_data(data)


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Whatever goes wrong, as a DataError that names the folder."""
    try:
        yield
    except Exception as error:  # of many kinds
        raise _fault(folder, error) from error


def _fault(folder: Path, error: Exception) -> DataError:
    return DataError(f"the folder {str(folder)!r} cannot be read as a data set: {error}")


def _names(files: list[Path]) -> str:
    """The names of the first few files."""
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    return ", ".join(repr(file.name) for file in files[:5]) + more
