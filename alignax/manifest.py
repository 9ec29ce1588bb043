"""What a run folder is: its manifest, the parents it was made from, and whether it is still current.

`manifest.json` is written last, so its presence means that the stage is complete. Only JSON and hashes here; the arrays
are in `checkpoint.py`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import alignax
from alignax.config import plain
from alignax.log import plain_json, replace_file

FORMAT = 1
# what stages made before manifests said it, if no policy
MADE = {"reward": "reward", "collect": "files", "evaluate": "files"}
# keys of a config that decide what is said of a run, and nothing of what it makes
WATCHES = ("alarms",)
_OWN = (
    "manifest.json",
    "config.json",
    "metrics.jsonl",
    "alarms.jsonl",
    "samples.jsonl",
    "reference.npz",
    "steps",
    "params",
    "tokenizer",
    "hf",
    "tensorboard",
)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or used as asked; the message names the folder and the fix."""


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of the config as JSON with sorted keys."""
    return _sha256(json.dumps(_plain(config), sort_keys=True, allow_nan=False))


def files_hash(workdir: str | Path, names: Sequence[str]) -> str:
    """sha256 over names and bytes of files in `workdir`: the content of a stage that makes data, not parameters."""
    digest = hashlib.sha256()
    for name in sorted(names):
        path = Path(workdir) / name
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file, but the stage's content is made of it; run the stage again")
        digest.update(f"{name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    return plain_json(plain(value))


def write_manifest(
    workdir: str | Path,
    *,
    stage: str,
    makes: str,
    name: str,
    config: Mapping[str, Any],
    parents: Mapping[str, Mapping[str, str]],
    content_hash: str,
    step: int,
    architecture: Mapping[str, Any] | None = None,
    tokenizer_hash: str | None = None,
    template_hash: str | None = None,
    data: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    files: Sequence[str] = (),
    base: Mapping[str, str] | None = None,
    longest_text: int | None = None,
    code: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Writes `<workdir>/manifest.json`, atomically, and returns it. Call it last: it declares the stage complete.

    `makes` is "policy", "reward" or "files". `parents` maps a role to what `parent_record` gave when the parent was
    loaded. `files` names the files that `content_hash` covers, for a stage without parameters. `base` is the record
    of the checkpoint on which an adapter stands, for a stage whose parameters are one. `longest_text` is the number
    of tokens up to which the parameters were trained, ancestors included. `code` is `config.code_of` the config.
    """
    manifest = {
        "format": FORMAT,
        "stage": stage,
        "makes": makes,
        "name": name,
        "alignax": alignax.__version__,
        "config": config,
        "config_hash": config_hash(config),
        "parents": parents,
        "architecture": architecture,
        "tokenizer_hash": tokenizer_hash,
        "template_hash": template_hash,
        "data": data,
        "calibration": calibration,
        "metrics": metrics or {},
        "files": list(files),
        "content_hash": content_hash,
        "step": int(step),
        "base": base,
        "longest_text": longest_text,
        "code": code,
    }
    manifest = _plain(manifest)
    replace_file(Path(workdir) / "manifest.json", json.dumps(manifest, indent=1, allow_nan=False) + "\n")
    return manifest


def read_manifest(workdir: str | Path) -> dict[str, Any]:
    """The manifest of a finished stage. Raises CheckpointError that says what is wrong with the folder otherwise."""
    workdir = Path(workdir)
    path = workdir / "manifest.json"
    if not path.is_file():
        raise CheckpointError(_why_no_manifest(workdir))
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); delete the folder and run its stage again") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path}: not a JSON object; delete the folder and run its stage again")
    missing = [key for key in ("stage", "config", "parents", "content_hash", "step") if key not in manifest]
    if missing or manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {manifest.get('format')!r}, missing {missing}: expected format {FORMAT}; "
            f"it is from another version of alignax, run its stage again"
        )
    manifest = {"files": [], "metrics": {}, "base": None, "makes": MADE.get(manifest["stage"], "policy")} | manifest
    if manifest["makes"] != "files" and not any((workdir / "params").glob("*")):
        raise CheckpointError(f"{workdir}: the manifest is there, but params/ is missing; copy it too, or run again")
    return manifest


def _why_no_manifest(workdir: Path) -> str:
    if not workdir.exists():
        return f"{workdir}: no such directory; expected the folder of a finished stage"
    if not workdir.is_dir():
        return f"{workdir}: a file; expected the folder of a finished stage"
    names = {path.name for path in workdir.iterdir()}
    if not names:
        return f"{workdir}: the directory is empty; expected the folder of a finished stage"
    if names & set(_OWN):
        return f"{workdir}: the stage is not finished (no manifest.json yet); run the same command again to finish it"
    stages = sorted(path.parent.name for path in workdir.glob("*/manifest.json"))
    hint = f"did you mean one of its stages: {', '.join(stages)}?" if stages else "give the folder of a finished stage"
    return f"{workdir}: not the folder of a stage (no manifest.json); {hint}"


def parent_record(workdir: str | Path, parent: str | Path) -> dict[str, str]:
    """{"path", "content_hash"} of a parent, for `write_manifest` and `is_current`.

    The path is relative to `workdir` if both lie in the same pipeline folder, so that the folder can be moved.
    """
    here, there = Path(workdir).resolve(), Path(parent).resolve()
    path = os.path.relpath(there, here) if there.is_relative_to(here.parent) else str(there)
    return {"path": path, "content_hash": read_manifest(parent)["content_hash"]}


def check_parent(
    manifest: Mapping[str, Any],
    *,
    role: str,
    makes: str | tuple[str, ...] | None = None,
    tokenizer_hash: str | None = None,
    template_hash: str | None = None,
    architecture: Mapping[str, Any] | None = None,
    ignore: tuple[str, ...] = (),
) -> None:
    """Raises CheckpointError if a parent does not fit, with every field that differs; None is not checked.

    `ignore` names fields of the architecture that do not change the parameters' meaning (remat, compute dtype).
    """
    kinds, wrong = (makes,) if isinstance(makes, str) else makes, []
    if kinds and manifest["makes"] not in kinds:
        wrong.append(f"the stage {manifest['stage']} makes: {manifest['makes']}, expected {' or '.join(kinds)}")
    for name, expected in (("tokenizer_hash", tokenizer_hash), ("template_hash", template_hash)):
        free = name == "template_hash" and manifest.get(name) is None  # an imported checkpoint has no template yet
        if expected is not None and manifest.get(name) != expected and not free:
            wrong.append(f"{name}: parent {_short(manifest.get(name))}, config {_short(expected)}")
    if architecture is not None:
        parent, config = manifest.get("architecture") or {}, _plain(architecture)
        changes = _changes(_without(parent, ignore), _without(config, ignore))
        wrong += [f"architecture.{key}: parent {was}, config {now}" for key, was, now in changes]
    if wrong:
        label = f"{manifest.get('name', '?')!r} (stage {manifest['stage']}, content {_short(manifest['content_hash'])})"
        raise CheckpointError(
            f"parent {role} = {label} does not fit:\n  "
            + "\n  ".join(wrong)
            + "\nUse the tokenizer, template and architecture of the parent, or name another parent."
        )


def start(
    workdir: str | Path, config: Mapping[str, Any], parents: Mapping[str, Mapping[str, str]],
    code: Mapping[str, str] | None = None,
) -> str | None:  # fmt: skip
    """Prepares a folder for a stage; returns None to go on with what is there, or the reason why it was cleared.

    What an earlier, unfinished run left is used only if it had the same config, parents and code; otherwise a resumed
    run would be a mixture of two. Writes config.json and started.json; removes the files of a stage only, and only in a
    folder where a stage was started (CheckpointError otherwise).
    """
    workdir, now = Path(workdir), _plain({"config": config, "parents": parents, "code": code})
    marker = workdir / "started.json"
    owned = [workdir / name for name in _OWN if (workdir / name).exists()]
    if not marker.is_file() and owned:
        names = ", ".join(path.name for path in owned)
        raise CheckpointError(f"{workdir}: holds {names}, which no stage started here; choose another workdir")
    was = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else None
    reason = None if was is None else _difference(was, now)
    if was is not None and reason is None:
        if was["config"] != now["config"]:  # what it watches for
            replace_file(workdir / "config.json", json.dumps(now["config"], indent=1) + "\n")
        return None
    workdir.mkdir(parents=True, exist_ok=True)
    replace_file(marker, '{"config": {}, "parents": {}}\n')  # killed while clearing: fits no config, cleared again
    for path in owned:  # the manifest first: never a manifest of things that are gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    replace_file(workdir / "config.json", json.dumps(now["config"], indent=1) + "\n")
    replace_file(marker, json.dumps(now) + "\n")
    return reason


def why_stale(
    workdir: str | Path, config: Mapping[str, Any], parents: Mapping[str, Mapping[str, str]],
    code: Mapping[str, str] | None = None,
) -> str | None:  # fmt: skip
    """Why a stage has to run (again), or None if it is finished, of the same config, parents' contents and code.

    Code that was not recorded, or is not given, is not compared.
    """
    try:
        manifest = read_manifest(workdir)
    except CheckpointError as error:
        return str(error)
    return _difference(manifest, _plain({"config": config, "parents": parents, "code": code}))


def is_current(workdir: str | Path, config: Mapping[str, Any], parents: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether the finished stage in `workdir` was made from this config and parents of this content."""
    return why_stale(workdir, config, parents) is None


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    before, after = (_without(side["config"], WATCHES) for side in (was, now))
    changes = [f"config.{key}: was {old}, now {new}" for key, old, new in _changes(before, after)]
    for role in sorted({*was["parents"], *now["parents"]}):
        old, new = (side["parents"].get(role, {}).get("content_hash") for side in (was, now))
        if old != new:
            changes.append(f"parent {role}: content was {_short(old)}, now {_short(new)}")
    before, after = was.get("code") or {}, now["code"] or {}
    other = [key for key in sorted({*before} & {*after}) if before[key] != after[key]]
    changes += [f"config.{key}: the code of the function is another" for key in other]
    return "; ".join(changes) or None


def _changes(was: Any, now: Any, key: str = "") -> list[tuple[str, str, str]]:
    """(dotted key, old, new) for every leaf that differs."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        names = sorted({*was, *now})
        missing = object()
        pairs = [(f"{key}.{name}".lstrip("."), was.get(name, missing), now.get(name, missing)) for name in names]
        return [change for name, a, b in pairs for change in _changes(a, b, name)]
    if type(was) is type(now) and was == now:
        return []
    old, new = ("nothing" if type(value) is object else repr(value) for value in (was, now))
    return [(key, old, new)]


def _without(tree: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if name not in names}


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "none"
