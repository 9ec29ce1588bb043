"""From a plan to arrays: sources, the forms that encoders take, mixtures, and data that another step made."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from alignax.bound import takes
from alignax.config import ConfigError
from alignax.data import cache
from alignax.data.counts import Counts, DataError
from alignax.data.forms import convert, form_of, taken_by
from alignax.data.mixture import epochs
from alignax.manifest import read_manifest
from alignax.stages.folder import Stage, is_step, locate, say, step_of
from alignax.stages.plans import Learning, Source


def load_rows(
    source: Source, split: str, *, form: str = "", root: Path | None = None, template: str = ""
) -> tuple[list[dict], Counts]:
    """(rows, counts) of a source.

    It may take the `template` of the stage, and so may the way to the `form`: some texts are laid out by it.

    A `path` may name a step that made rows, by its folder or as '@name': its file is read; the first of several, unless
    the path says which, '@name/prompts.jsonl'. Where the source takes several paths, each may be one. With `form`, rows
    of other forms are made into rows of this one, where there is a way (`alignax.data.forms`).
    """
    function, options = source.function.function, dict(source.function.options)
    options |= {"template": template} if template and takes(function, "template") else {}
    if source.parts:
        load = partial(load_part, split=split, form=form, root=root, template=template)
        options["parts"] = {name: load(name, part) for name, part in source.parts.items()}
        rows, counts = function(split=split, **options)
        counts.parts = {name: own for name, (_, own) in options["parts"].items()}
        return rows, counts
    if path := options.get("path"):
        many = isinstance(path, list)
        found = [file_of(one, root, source.key) for one in (path if many else [path])]
        options["path"] = found if many else found[0]
    rows, counts = function(split=split, **options)
    if not form:
        return rows, counts
    own = form_of(rows)
    made, counts = convert(rows, form, counts, template=template)
    if own != form or len(made) != len(rows):
        say(f"{source.function.name}, {split}: {own} rows made into {form}: {counts}")
    return made, counts


def load_part(name: str, part: Source, split: str, **options: Any) -> tuple[list[dict], Counts]:
    """`load_rows` of one part of a mixture; an error of its data says which part."""
    try:
        return load_rows(part, split, **options)
    except DataError as error:
        raise DataError(f"part {name!r} of the mixture: {error}") from error


def encoded(
    plan: Any, encode: Callable, tokenizer: Any, split: str, root: Path | None
) -> tuple[dict, Counts, list[dict]]:
    """The arrays that `encode` makes of a plan's rows, their counts, and the rows, which `row` of the arrays indexes.

    The one way from a plan to arrays: it brings the rows into the form that `encode` takes, asks the cache, and marks
    the parts of a mixture to train on. `encode` has its options bound.
    """
    form, template = taken_by(encode), encode.keywords["template"]  # pyright: ignore[reportFunctionMemberAccess]
    rows, counts = load_rows(plan.source, split, form=form, root=root, template=template)
    arrays, counts = cache.encoded(encode, rows, tokenizer, counts=counts)
    if plan.source.parts and split == "train":
        arrays = arrays | {"part": part_of(plan.source, rows, arrays)}
        counts = with_epochs(plan, arrays["part"], counts, form)
    return arrays, counts, rows


def part_of(source: Source, rows: list[dict], arrays: dict) -> Int[np.ndarray, " N"]:
    """The part of a mixture that each row of the arrays is of: an index into the sorted names."""
    names = sorted(source.parts)
    return np.array([names.index(rows[row]["part"]) for row in arrays["row"]], np.int32)


def with_epochs(plan: Learning, part_N: Int[np.ndarray, " N"], counts: Counts, form: str) -> Counts:
    """The counts of a mixture's training rows of one form, with how often a run of the stage reads those of each part.

    Raises DataError for what stops a run, in `alignax data` as well.
    """
    counts = copy.copy(counts)
    most = plan.source.function.options.get("max_repeats", 0.0)
    counts["epochs"] = epochs(part_N, plan.source.weights, plan.draws(form), most)
    return counts


def file_of(path: Any, root: Path | None, key: str) -> str:
    """A path of data; of a step the file that it wrote, of rows, and the first unless the path says which."""
    if not is_step(str(path)):
        return path
    step, file = step_of(path)
    folder = locate(step, root, key=f"{key}.path")
    manifest = read_manifest(folder)
    files = manifest["files"]
    if not [name for name in files[:1] if name.endswith(".jsonl")] or (file and file not in files):
        made = f"makes {', '.join(files)} and no {file}" if file else "makes no rows"
        raise ConfigError(f"config.{key}.path: {folder} is of the stage {manifest['stage']!r}, which {made}")
    return str(folder / (file or files[0]))


def preferences(
    stage: Stage, encode: Callable, tokenizer: Any, what: str = "preferences"
) -> tuple[dict, dict, list[dict], dict]:
    """Rows to train on and held out, as arrays (`encode`'s); the held-out text; both counts."""
    train, counts, _ = encoded(stage.plan, encode, tokenizer, "train", stage.root)
    held, held_counts, held_rows = encoded(stage.plan, encode, tokenizer, "heldout", stage.root)
    say(f"{what}: {counts}; held out: {held_counts}")
    return train, held, held_rows, {"train": counts, "heldout": held_counts}
