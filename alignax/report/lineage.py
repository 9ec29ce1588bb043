"""The family tree of checkpoints, as the manifests tell it."""

import dataclasses
from pathlib import Path

from alignax.report.folder import Run, Stage


@dataclasses.dataclass
class Parent:
    """A parent named in a manifest. `state` says whether its content is still what the child was trained from."""

    role: str
    name: str
    content_hash: str
    state: str  # "same", "changed", or "elsewhere" if the parent's folder is not part of this report


@dataclasses.dataclass
class Node:
    """A stage in the tree: under its first parent (the checkpoint it started from), all parents listed."""

    stage: Stage
    parents: list[Parent]
    children: list["Node"]

    @property
    def content_hash(self) -> str:
        return str((self.stage.manifest or {}).get("content_hash") or "")


def tree(run: Run) -> list[Node]:
    """The roots: stages without a parent inside this folder. Every stage with a manifest appears exactly once."""
    known = {stage.path.resolve(): stage for stage in run.stages}
    nodes = {path: Node(stage, _parents(stage, known), []) for path, stage in known.items() if stage.manifest}
    roots = []
    for path, node in nodes.items():
        above = next((at for at in _parent_paths(node.stage).values() if at in nodes and at != path), None)
        if above is None or _leads_to(above, path, nodes):
            roots.append(node)
        else:
            nodes[above].children.append(node)
    return roots


def _leads_to(start: Path, goal: Path, nodes: dict[Path, Node]) -> bool:
    """Whether climbing from `start` by first parents reaches `goal`: only hand-edited manifests make such a circle."""
    visited: set[Path] = set()
    at: Path | None = start
    while at is not None and at not in visited:
        if at == goal:
            return True
        visited.add(at)
        at = next((path for path in _parent_paths(nodes[at].stage).values() if path in nodes), None)
    return False


def _parent_paths(stage: Stage) -> dict[str, Path]:
    """Role -> folder; what the stage started from (`policy`) comes first."""
    given = (stage.manifest or {}).get("parents") or {}
    roles = sorted(given, key=lambda role: role != "policy")
    return {role: (stage.path / str(given[role].get("path", ""))).resolve() for role in roles}


def _parents(stage: Stage, known: dict[Path, Stage]) -> list[Parent]:
    given = (stage.manifest or {}).get("parents") or {}
    out = []
    for role, path in _parent_paths(stage).items():
        recorded = str(given[role].get("content_hash") or "")
        now = (known[path].manifest or {}).get("content_hash") if path in known else None
        state = "elsewhere" if path not in known else "same" if now == recorded else "changed"
        out.append(Parent(role, path.name, recorded, state))
    return out
