"""What the stages of a config will see of their data: rows as tokens and masks, lengths, drops, duplicates, balance.

No model is built. A section is a plain dict, which `alignax.report.preview` shows in the terminal and as a page.
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alignax.config import ConfigError, plain
from alignax.data import look
from alignax.data.counts import NOTES, REASONS, Counts, DataError, meaning
from alignax.data.forms import taken_by
from alignax.data.judged import attributes_of, rating_rows
from alignax.data.packing import compared
from alignax.data.templates import stop_ids
from alignax.data.tokenizer import Tokenizer, load_tokenizer
from alignax.stages import folder, inputs, parents, pipeline, plans

Texts = tuple[list[dict], Counts]  # of one split, as a source gives them


def preview(config: Any, *, rows: int = 5, tokenizer: str = "", workdir: str | Path | None = None) -> list[dict]:
    """A section for each stage of the config that reads data, in their order.

    `rows`: how many are shown of each; `tokenizer` is taken instead of the stage's own, say because the parent that has
    it is not there yet; '@step' is looked for in `workdir`. A section of data that cannot be used, or that another step
    has yet to make, says so under "error" or "waiting". Raises ConfigError for what a plan refuses, and where there
    is no tokenizer.
    """
    config, root = plain(config), Path(workdir) if workdir else None
    if "steps" not in config:
        plan = plans.made(config)
        if not hasattr(plan, "readings"):
            raise ConfigError(f"config.stage = {config['stage']!r}: this stage reads no data of its own")
        return [section(str(config["stage"]), config, plan, {}, rows, tokenizer, root)]
    steps = {name: (config[name], plan) for name, plan in pipeline.planned(config).items()}
    configs = {name: one for name, (one, _) in steps.items()}
    reading = {name: both for name, both in steps.items() if hasattr(both[1], "readings")}
    return [section(name, *both, configs, rows, tokenizer, root) for name, both in reading.items()]


def section(
    name: str, config: dict, plan: Any, steps: dict[str, dict], rows: int, tokenizer: str, root: Path | None
) -> dict:
    """What one stage will see."""
    head = {"name": name, "stage": config["stage"], "template": plan.template}
    for path in (folder.step_of(path)[0] for path in made_by_steps(config)):
        if root is None or not (root / path[1:] / "manifest.json").is_file():
            return head | {"waiting": f"its data are made by the step {path[1:]!r}, which is not finished"}
    try:
        texts = read(plan, root)
    except DataError as error:
        return head | {"error": str(error)}
    found = find_tokenizer(config, steps, tokenizer, root)
    try:
        return head | seen(plan, found, texts, rows)
    except DataError as error:
        return head | {"error": str(error)}


def made_by_steps(config: dict) -> list[str]:
    """The paths, of the data or of the parts of a mixture, that name a step of the pipeline."""
    given = [config["data"], *config["data"].get("parts", {}).values()]
    paths = [group.get("path", "") for group in given]
    each = [one for path in paths for one in (path if isinstance(path, list) else [path])]
    return [path for path in map(str, each) if path.startswith("@")]


def find_tokenizer(config: dict, steps: dict[str, dict], given: str, root: Path | None) -> Tokenizer:
    """The one that the stage will use: the parent's, or that of the step that is to make the parent, or its own."""
    reads = plans.module_of(config).STAGE.reads.values()  # the first policy that is named has the tokenizer
    key = next((one.key for one in reads if one.makes == plans.POLICY and config.get(one.key)), "init_from")
    parent = config.get(key, "")
    own = config.get("tokenizer", "") or (config["path"] if config["stage"] == "imported" else "")
    if parent and not given:
        at = None if parent.startswith("@") and root is None else folder.locate(parent, root, key=key)
        if at and (at / "tokenizer").is_dir():
            return load_tokenizer(str(at / "tokenizer"))
        if parent[1:] in steps and parent.startswith("@"):
            return find_tokenizer(steps[parent[1:]], steps, given, root)
        if not own:
            raise ConfigError(
                f"config.{key} = {parent!r} has the tokenizer, but is not finished: run that stage first, or say which "
                "tokenizer it will have, by --tokenizer=FOLDER, a hub name or module:function"
            )
    name = given or own
    return parents.named_tokenizer(name)


def read(plan: Any, root: Path | None) -> list[tuple[partial, dict[str, Texts]]]:
    """The rows that each of the plan's readings takes, with their counts, by split. The first is shown."""
    out = []
    for encode, splits in plan.readings():
        load = partial(inputs.load_rows, plan.source, form=taken_by(encode), root=root, template=plan.template)
        texts = {split: load(split) for split in splits}
        if encode.func is rating_rows:
            encode = partial(encode, attributes=attributes_of(texts["train"][0]))
        out.append((encode, texts))
    return out


def seen(plan: Any, tokenizer: Tokenizer, texts: list[tuple[partial, dict[str, Texts]]], rows: int) -> dict:
    """Everything to show of the arrays of a stage; of a mixture that a run would refuse the parts and why."""
    made: dict[str, tuple[dict, Counts]] = {}
    parts, refused = [], []
    for encode, splits in texts:
        for split, (found, source) in splits.items():
            arrays, counts = encode(found, tokenizer, counts=source)
            name = "prompts" if split in made else split  # of a distillation that reads both, as in its manifest
            if plan.source.parts and split == "train":
                part_N = inputs.part_of(plan.source, found, arrays)
                try:
                    counts = inputs.with_epochs(plan, part_N, counts, taken_by(encode))
                except DataError as error:
                    refused.append(str(error))
                parts += shares(plan.source.weights, found, source.parts, part_N, counts, ", prompts" * (name != split))
            made[name] = arrays, counts
    if refused:
        return {"parts": parts, "error": refused[0]}
    encode, (batch, counts) = texts[0][0], made["train"]
    limit = {key: encode.keywords[key] for key in ("max_length", "max_prompt_length") if key in encode.keywords}
    (key, most), = limit.items()  # fmt: skip
    sides = look.sides_of(batch)
    shown = np.unique(np.linspace(0, len(batch["row"]) - 1, min(rows, len(batch["row"]))).round().astype(int)).tolist()
    ends = sorted(stop_ids(tokenizer, plan.template))
    return {
        "limit": (key, int(most)),
        "counts": {split: str(found) for split, (_, found) in made.items()},
        "dropped": [[reason, n, meaning(reason, counts.found.get(reason, "")), REASONS[reason][1]]
                    for reason, n in counts.dropped.items()],
        "noted": [[note, n, *NOTES[note]] for note, n in counts.noted.items()],
        "parts": parts,
        "lengths": {name: look.lengths(side["valid"].sum(1), int(most)) for name, side in sides.items()},
        "facts": look.facts(batch, sides, encode.keywords.get("attributes", ()))
        + look.leaks(sides, made)
        + [
            [
                f"packing {mode!r}" + ", as set" * (mode == plan.packing),
                f"{places} tokens a step on one device, rows of {length}, {real:.0%} real",
            ]
            for mode, places, length, real in (compared(batch, plan.batch_size) if getattr(plan, "packing", "") else [])
        ],
        "ends": [f"{token} (id {i})" for i, token in zip(ends, tokenizer.convert_ids_to_tokens(ends))],
        "rows": [look.show(tokenizer, sides, int(batch["row"][i]), i) for i in shown],
    }  # fmt: skip


def shares(
    weights: Mapping[str, float],
    rows: list[dict],
    source: dict[str, Counts],
    part_N: np.ndarray,
    counts: Counts,
    suffix: str = "",
) -> list[list[str]]:
    """Of each part of a mixture its name, weight, rows, those kept, those dropped by reason, and epochs. `source` has
    the counts of each part before the rows were encoded, `counts` those of all of them after that."""
    times, out = counts.get("epochs", {}), []
    for i, name in enumerate(sorted(weights)):
        lost = Counter(source[name].dropped)
        lost.update(reason for row, reason in counts.lost.items() if rows[row]["part"] == name)
        share, kept = f"{100 * weights[name] / sum(weights.values()):.1f}%", int(np.sum(part_N == i))
        dropped = ", ".join(f"{n} {reason}" for reason, n in lost.most_common()) or "0"
        out.append([name + suffix, share, str(kept + lost.total()), str(kept), dropped, str(times.get(name, "-"))])
    return out
