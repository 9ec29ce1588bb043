"""The family tree of a run, as text: what each stage was made from, and what has changed since."""

from pathlib import Path
from typing import Any

from alignax.manifest import CheckpointError, read_manifest

SHOWN = 4  # metrics per node: the first ones of the manifest


def lineage(workdir: str | Path) -> str:
    """A stage and its ancestors, or every stage of a pipeline folder: under each stage, the parents it was made from.

    A parent that is missing, unfinished, or whose content is no longer what the child was made from is marked. Raises
    CheckpointError if there is neither a stage nor a pipeline of stages.
    """
    workdir = Path(workdir).resolve()
    if (workdir / "manifest.json").is_file():
        return "\n".join(_node(workdir, workdir.name, shown=set()))
    stages = _stages(workdir)
    if not stages:
        read_manifest(workdir)  # says what is wrong with the folder
    shown: set[Path] = set()
    parents = {(stage / link["path"]).resolve() for stage in stages for link in _parents(stage).values()}
    heads = [stage for stage in stages if stage not in parents]  # what nothing else was made from
    return "\n".join([workdir.name, *_branches([_node(stage, stage.name, shown=shown) for stage in heads])])


def _stages(workdir: Path) -> list[Path]:
    marks = ("manifest.json", "config.json", "steps")
    folders = sorted(path for path in workdir.glob("*") if path.is_dir())
    return [path for path in folders if any((path / mark).exists() for mark in marks)]


def _parents(stage: Path) -> dict[str, dict[str, str]]:
    try:
        return read_manifest(stage)["parents"]
    except CheckpointError:
        return {}


def _node(stage: Path, label: str, *, shown: set[Path], recorded: str | None = None) -> list[str]:
    """The lines of one stage and, below it, of its parents. `recorded` is the content that its child was made from."""
    try:
        manifest = read_manifest(stage)
    except CheckpointError as error:
        return [f"{label}  [{_what_is_wrong(stage, error)}]"]
    line = f"{label}  {_summary(manifest)}"
    if recorded is not None and recorded != manifest["content_hash"]:
        line += f"  [changed since: was {recorded[:8]}]"
    if stage in shown:
        return [line if not manifest["parents"] else f"{line}  (parents above)"]
    shown.add(stage)
    below = []
    for role, link in manifest["parents"].items():
        parent = (stage / link["path"]).resolve()
        below.append(_node(parent, f"{role}: {parent.name}", shown=shown, recorded=link["content_hash"]))
    return [line, *_branches(below)]


def _what_is_wrong(stage: Path, error: CheckpointError) -> str:
    if not stage.is_dir():
        return "missing"
    return f"unreadable: {error}" if (stage / "manifest.json").is_file() else "unfinished"


def _summary(manifest: dict[str, Any]) -> str:
    scalars = [(name, value) for name, value in manifest["metrics"].items() if isinstance(value, (int, float))]
    parts = [manifest["stage"], f"step {manifest['step']}", manifest["content_hash"][:8]]
    return "  ".join(parts + [f"{name} {value:.4g}" for name, value in scalars[:SHOWN]])


def _branches(nodes: list[list[str]]) -> list[str]:
    lines = []
    for number, (first, *rest) in enumerate(nodes, start=1):
        last = number == len(nodes)
        lines += [f"{'└── ' if last else '├── '}{first}"]
        lines += [f"{'    ' if last else '│   '}{line}" for line in rest]
    return lines
