"""From a config to arrays: sources, the forms that encoders take, mixtures, and data that another step made."""

import copy
import importlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from alignax.config import ConfigError, Reader, bind, resolve
from alignax.data import cache
from alignax.data.counts import Counts, DataError
from alignax.data.encode import demo_rows, pair_rows, prompt_rows
from alignax.data.forms import convert, form_of
from alignax.data.judged import ranking_rows, rating_rows, step_rows
from alignax.data.mixture import epochs
from alignax.data.thumbs import unpaired_rows
from alignax.manifest import read_manifest
from alignax.stages.common import Stage, console, is_step, locate
from alignax.stages.precheck import split_part, weights_of

# what makes arrays of rows -> the form of the rows that it takes
FORMS = {
    demo_rows: "prompt_completion", pair_rows: "preference", unpaired_rows: "unpaired", prompt_rows: "prompt_only",
    ranking_rows: "ranked", rating_rows: "ratings", step_rows: "stepwise",
}  # fmt: skip


def load_rows(
    source: str,
    args: dict,
    split: str,
    *,
    form: str = "",
    key: str = "source",
    root: Path | None = None,
    group: str = "",
    template: str = "",
) -> tuple[list[dict], Counts]:
    """(rows, counts) of the source that a config names; its arguments are checked against its signature.

    A source may take the `template` of the stage, and so may the way to the `form`: some texts are laid out by it.

    A `path` may name a step that collected judgements, by its folder or as '@name': its file is read. With `form`, rows
    of other forms are made into rows of this one, where there is a way (`alignax.data.forms`).
    """
    function = resolve(source, "alignax.data.sources", key=key)
    asks = {"template": template} if template and "template" in inspect.signature(function).parameters else {}
    options = bind(function, args, key=group or key.replace("source", "data"), given=("split", "template")) | asks
    if source == "mixture":
        load = partial(load_part, split=split, form=form, root=root, template=template)
        options["parts"] = {name: load(name, part) for name, part in args["parts"].items()}
        rows, counts = function(split=split, **options)
        counts.parts = {name: own for name, (_, own) in options["parts"].items()}
        return rows, counts
    if is_step(str(options.get("path", ""))):
        options["path"] = str(collected(locate(options["path"], root, key="data.path")))
    rows, counts = function(split=split, **options)
    if not form:
        return rows, counts
    own = form_of(rows)
    made, counts = convert(rows, form, counts, template=template)
    if own != form or len(made) != len(rows):
        console.print(f"{source}, {split}: {own} rows made into {form}: {counts}")
    return made, counts


def load_part(name: str, part: dict, split: str, **options: Any) -> tuple[list[dict], Counts]:
    """`load_rows` of one part of a mixture; an error of its data says which part."""
    (source, args), group = split_part(name, part), f"data.parts.{name}"
    try:
        return load_rows(source, args, split, key=f"{group}.source", group=group, **options)
    except DataError as error:
        raise DataError(f"part {name!r} of the mixture: {error}") from error


def encoded(
    stage: Stage, encode: Callable, tokenizer: Any, split: str, root: Path | None, *, cfg: Reader | None = None,
    key: str = "source", **options: Any,
) -> tuple[dict, Counts, list[dict]]:  # fmt: skip
    """The arrays that `encode` makes of a config's rows, their counts, and the rows, which `row` of the arrays indexes.

    The one way from a config to arrays: it brings the rows into the form that `encode` takes, asks the cache, and
    marks the parts of a mixture to train on.
    """
    cfg = cfg or stage.cfg
    source, args = cfg.source, cfg.data
    form = FORMS[getattr(encode, "func", encode)]
    rows, counts = load_rows(source, args, split, form=form, key=key, root=root, template=options["template"])
    arrays, counts = cache.encoded(encode, rows, tokenizer, counts=counts, **options)
    if source == "mixture" and split == "train":
        arrays = arrays | {"part": part_of(args, rows, arrays)}
        counts = with_epochs(stage.config, arrays["part"], counts, form)
    return arrays, counts, rows


def part_of(args: dict, rows: list[dict], arrays: dict) -> Int[np.ndarray, " N"]:
    """The part of a mixture that each row of the arrays is of: an index into the sorted names."""
    names = sorted(args["parts"])
    return np.array([names.index(rows[row]["part"]) for row in arrays["row"]], np.int32)


def with_epochs(config: dict, part_N: Int[np.ndarray, " N"], counts: Counts, form: str) -> Counts:
    """The counts of a mixture's training rows of one form, with how often a run of the stage reads those of each part.

    Raises DataError for what stops a run, in `alignax data` as well.
    """
    counts = copy.copy(counts)
    args = config["data"]
    counts["epochs"] = epochs(part_N, weights_of(args), draws(config, form), args.get("max_repeats", 0.0))
    return counts


def draws(config: dict, form: str) -> int:
    """How many rows of this form a run reads: a batch per step, or what the `draws` of the stage's own file say."""
    own = getattr(importlib.import_module(f"alignax.stages.{config['stage']}"), "draws", None)
    return own(config, form) if own else config["total_steps"] * config["batch_size"]


def collected(folder: Path) -> Path:
    """The file that a finished step of the collect stage wrote, whatever its kind."""
    manifest = read_manifest(folder)
    if manifest["stage"] != "collect":
        raise ConfigError(f"config.data.path: {folder} is of the stage {manifest['stage']!r}; expected 'collect'")
    return folder / manifest["files"][0]


def preference_data(
    stage: Stage, tokenizer: Any, root: Path | None, encode: Callable = pair_rows
) -> tuple[dict, dict, list[dict], dict]:
    """Preferences to train on and held out, as arrays (`encode`'s); the held-out text; both counts."""
    options = {"template": stage.cfg.template, "max_length": stage.cfg.max_length}
    train, counts, _ = encoded(stage, encode, tokenizer, "train", root, **options)
    held, held_counts, held_rows = encoded(stage, encode, tokenizer, "heldout", root, **options)
    console.print(f"preferences: {counts}; held out: {held_counts}")
    return train, held, held_rows, {"train": counts, "heldout": held_counts}
