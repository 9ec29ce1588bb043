"""The folder of a stage: opened once its config is planned and its parents are found, and closed by a manifest."""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alignax import host
from alignax.checkpoint import content_hash, save_params
from alignax.config import ConfigError, code_of, plain, spelled
from alignax.data.tokenizer import template_hash, tokenizer_hash
from alignax.log import console
from alignax.manifest import check_parent, parent_record, read_manifest, start, why_stale, write_manifest
from alignax.models.config import ModelConfig
from alignax.stages.lengths import check_context, longest_of, longest_text
from alignax.stages.plans import Declaration, Parent, parents_of, value_at
from alignax.types import Model, Params


def say(*text: Any, **options: Any) -> None:
    """Prints a line, in the first process alone."""
    if host.is_first():
        console.print(*text, **options)


class Stage(NamedTuple):
    """An open stage."""

    declared: Declaration
    workdir: Path
    config: dict  # as written, "@step" references included: what the manifest records
    plan: Any
    parents: dict[str, Path]
    records: dict[str, dict]  # role -> path and content hash, for the manifest
    root: Path | None  # folder of the pipeline, if there is one
    begun: float
    code: Mapping[str, str]  # of functions that are not alignax's own, `config.code_of`


def locate(path: str, root: Path | None, *, key: str) -> Path:
    """A folder named in a config; '@sft' is the step `sft` of the pipeline that this stage runs in."""
    if not path.startswith("@"):
        return Path(path).expanduser()
    if root is None:
        raise ConfigError(f"config.{key} = {path!r}: '@' names a step of a pipeline; a stage alone takes a folder")
    return root / path[1:]


def step_of(path: str) -> tuple[str, str]:
    """(step, file): '@mine/prompts.jsonl' is a file of the step '@mine'; any other path is a step of no named file."""
    step, _, file = path.partition("/")
    return (step, file) if path.startswith("@") and file.endswith(".jsonl") else (path, "")


def open_stage(
    declared: Declaration, plan: Callable[[Any], Any], config: Any, workdir: str | Path, root: Path | None,
    made: Any = None,
) -> Stage | None:  # fmt: skip
    """Plans the config, unless that is `made` already, finds the parents, and opens the folder.

    None if the stage is finished with this config and these parents: there is nothing to do. Raises ConfigError and
    CheckpointError before anything is written.
    """
    config, workdir = plain(config), Path(workdir)
    made = made or plan(config)
    code, config = code_of(config), spelled(config)
    found = named(declared, config)
    parents = {role: locate(step_of(path)[0], root, key=parent.key) for role, (parent, path) in found.items()}
    records = {role: parent_record(workdir, path) for role, path in parents.items()}
    for role, path in parents.items():
        manifest, parent = read_manifest(path), found[role][0]
        check_parent(manifest, role=role, makes=parent.makes)
        if architecture := manifest["architecture"]:
            check_context(ModelConfig(**architecture), config, role, parent)
    # one process looks and clears, and the others do as it found: a folder that is being cleared looks like any other
    if host.agreed(host.is_first() and why_stale(workdir, config, records, code) is None):
        say(f"[green]{workdir}[/]: finished before, with the same config and parents")
        return None
    host.in_first(lambda: _cleared(workdir, start(workdir, config, records, code)))
    return Stage(declared, workdir, config, made, parents, records, root, time.perf_counter(), code)


def _cleared(workdir: Path, reason: str | None) -> None:
    if reason:
        say(f"[yellow]{workdir}[/]: running again ({reason})")


def named(declared: Declaration, config: Mapping[str, Any]) -> dict[str, tuple[Parent, str]]:
    """{role: (parent, folder as it is written)} of the parents that a config names, its data and its probe's and golden
    set's included.

    Data may come from a step that made it, which is then a parent, or from a file or the hub, which is none.
    """
    groups = {f"{name}.": config.get(name, {}) for name in ("probe", "golden", "data_loss")}
    data = data_parents(config)
    for prefix, group in groups.items():
        data |= data_parents(group, prefix)
    found = {role: (one, str(value_at(config, one.key))) for role, one in (parents_of(declared, config) | data).items()}
    return {role: one for role, one in found.items() if one[1] and (role not in data or is_step(one[1]))}


def is_step(path: str) -> bool:
    """Whether a path is the folder of a stage, finished or not, and no data file."""
    return path.startswith("@") or any((Path(path) / name).is_file() for name in ("manifest.json", "started.json"))


def data_parents(config: Mapping[str, Any], prefix: str = "") -> dict[str, Parent]:
    """The data of a stage, or the parts of a mixture, as parents, for those that may be steps; of a list of paths each
    by its number, 'data.0'."""
    if not config.get("source"):
        return {}
    parts = config["data"].get("parts", {}) if config["source"] == "mixture" else {}
    found = {f"{prefix}data.{name}": f"{prefix}data.parts.{name}.path" for name in parts}
    found = found or {f"{prefix}data": f"{prefix}data.path"}
    out = {}
    for role, key in found.items():
        value = value_at(config, key.removeprefix(prefix))
        many = [(f"{role}.{i}", f"{key}.{i}") for i in range(len(value))] if isinstance(value, list) else [(role, key)]
        out |= {name: Parent(key, makes=(), reads=()) for name, key in many}
    return out


def base_of(folder: Path) -> Path:
    """The folder of the whole parameters on which a checkpoint stands: its own, unless it is an adapter."""
    base = read_manifest(folder)["base"]
    return folder if base is None else (folder / base["path"]).resolve()


def finish(
    stage: Stage, *, params: Params | None, step: int, model: Model | None = None, tokenizer: Any = None,
    template: str | None = None, files: tuple[str, ...] = (), content: str = "", makes: str = "",
    first: str = "policy", **fields: Any,
) -> Path:  # fmt: skip
    """Saves the final parameters and the tokenizer, then the manifest, which makes the stage complete.

    `makes`: what was made, where that is not what the stage declares; `first`: the role of the parent that it goes on
    from. Returns the folder.
    """
    if params is not None:
        save_params(stage.workdir / "params", params)
        content = content_hash(params)
    origin = stage.parents[first] / "hf" if first in stage.parents else None
    adapted = params is not None and "lora" in params
    before = longest_text(read_manifest(stage.parents[first])) if first in stage.parents else 0
    fields |= dict(
        base=parent_record(stage.workdir, base_of(stage.parents[first])) if adapted else None,
        stage=stage.declared.name,
        makes=makes or stage.declared.makes,
        name=stage.workdir.name,
        config=stage.config,
        code=stage.code,
        parents=stage.records,
        content_hash=content,
        step=step,
        architecture=model.config.architecture() if model else None,
        tokenizer_hash=tokenizer_hash(tokenizer) if tokenizer is not None else None,
        template_hash=template_hash(tokenizer, template) if template is not None else None,
        files=files,
        longest_text=max(before, longest_of(stage.config)) if params is not None else None,
    )

    def write() -> None:
        if tokenizer is not None:
            tokenizer.save_pretrained(str(stage.workdir / "tokenizer"))
        if params is not None and origin and origin.is_dir():  # what an imported checkpoint brought, for the way out
            shutil.copytree(origin, stage.workdir / "hf", dirs_exist_ok=True)
        write_manifest(stage.workdir, **fields)

    host.in_first(write)
    say(f"[green]{stage.workdir}[/]: done in {time.perf_counter() - stage.begun:.0f} s")
    return stage.workdir
