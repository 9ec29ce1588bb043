"""What safetensors files say of their tensors before any is read, and whether that is what is expected."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alignax.models.hf.composite import text_names

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # as safetensors and as numpy call them


class Header(NamedTuple):
    """What a checkpoint folder, or one file, says of its tensors."""

    where: dict[str, Path]  # tensor -> file
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]  # as safetensors calls them
    metadata: dict[str, str]
    stored: dict[str, str]  # tensor -> its name in the file
    left: dict[str, tuple[int, ...]]  # shapes of what is there and not read: of images


def read_headers(folder: Path) -> Header:
    """The header of a checkpoint folder, of one file or several; of text and images, that of the text part.

    Of one where both are there, as transformers takes.
    """
    if (folder / SINGLE).is_file():
        files = [SINGLE]
    elif (folder / INDEX).is_file():
        files = sorted(set(_weight_map(folder).values()))
    else:
        raise ValueError(
            f"{folder}: no {SINGLE} and no {INDEX}; files of pickled tensors are not read: load the model once with "
            "transformers and save it with save_pretrained"
        )
    lost = [file for file in files if not (folder / file).is_file()]
    if lost:
        raise ValueError(f"{folder}: {INDEX} names files that are not there: {', '.join(lost)}: fetch them")
    whole = Header({}, {}, {}, {}, {}, {})
    for file in files:
        for kept, found in zip(whole, read_header(folder / file)):
            kept |= found
    stored = text_names(whole.shapes)
    renamed = lambda part: {name: part[old] for name, old in stored.items()}  # noqa: E731
    read = set(stored.values())
    left = {name: shape for name, shape in whole.shapes.items() if name not in read}
    where, shapes, dtypes = renamed(whole.where), renamed(whole.shapes), renamed(whole.dtypes)
    return Header(where, shapes, dtypes, whole.metadata, stored, left)


def tensor_names(folder: Path) -> list[str] | None:
    """Of all tensors of a checkpoint folder; None where neither index nor weights are there."""
    if (folder / SINGLE).is_file():  # which counts where both are there
        return list(read_header(folder / SINGLE).shapes)
    return list(_weight_map(folder)) if (folder / INDEX).is_file() else None


def _weight_map(folder: Path) -> dict[str, str]:
    """{tensor: file} of the index."""
    try:
        return dict(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is damaged ({error!r}): fetch it again") from error


def read_header(file: Path) -> Header:
    """The header of a safetensors file. Raises ValueError for a damaged one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            shapes = {name: tuple(found.get_shape()) for name, found in slices.items()}
            dtypes = {name: found.get_dtype() for name, found in slices.items()}
            stored = {name: name for name in shapes}
            return Header(dict.fromkeys(shapes, file), shapes, dtypes, opened.metadata() or {}, stored, {})
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}): fetch it again") from error


def is_bare(names: Iterable[str], prefix: str) -> bool:
    """Whether tensors are of a bare decoder: its names lack the prefix that the language model puts before them."""
    return not any(name.startswith(prefix) for name in names)


def stored_dtypes(folder: Path, prefix: str) -> tuple[str, dict[str, str]]:
    """The dtype of most numbers of a folder, and those of the tensors that have another, as numpy calls them.

    Tensors are called as in the language model, whose `prefix` a bare decoder lacks.
    """
    header, sizes = read_headers(folder), dict.fromkeys(DTYPES, 0)
    lead = prefix if is_bare(header.shapes, prefix) else ""
    for name, dtype in header.dtypes.items():
        sizes[dtype] = sizes.get(dtype, 0) + math.prod(header.shapes[name])
    main = max(DTYPES, key=lambda dtype: sizes[dtype])
    return DTYPES[main], {lead + n: DTYPES[x] for n, x in header.dtypes.items() if x in DTYPES and x != main}


def check_finite(name: str, value: np.ndarray, file: Path) -> None:
    """Raises ValueError for a tensor that holds inf or nan."""
    if not np.isfinite(value.sum(dtype=np.float64)):  # a mask of the tensor would take a quarter of its memory
        raise ValueError(f"{file}: {name} holds inf or nan: fetch it again, or save the model in another precision")


def differences(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], *, unknown: str
) -> list[str]:
    """A line for every tensor that is missing, of another shape, or left over, which is `unknown`."""
    lines = [f"{name}: missing, expected {shape}" for name, shape in expected.items() if name not in found]
    lines += [f"{n} {found[n]}: expected {shape}" for n, shape in expected.items() if found.get(n, shape) != shape]
    return lines + [f"{name} {shape}: {unknown}" for name, shape in found.items() if name not in expected]


def wrong_dtypes(header: Header, names: Iterable[str]) -> list[str]:
    """A line for every tensor of a dtype that is not read."""
    kinds = ", ".join(DTYPES)
    return [f"{n}: dtype {header.dtypes[n]}, expected {kinds}" for n in names if header.dtypes[n] not in DTYPES]


def raise_all(wrong: list[str], what: str) -> None:
    """Raises ValueError with `what` and a line for each of `wrong`, if there are any."""
    if wrong:
        more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise ValueError(what + "".join(f"\n  {line}" for line in wrong[:20]) + more)
