"""A run folder as it lies on disk: its stages, their metrics, the evaluation, and what is not there."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, TypeGuard

from alignax.log import read_metrics

KINDS = ("sft", "collect", "select", "mine", "reward", "online", "offline", "distill", "evaluate")
KIND_OF_NAME = {kind: kind for kind in KINDS} | {"ppo": "online", "dpo": "offline", "eval": "evaluate"}
KIND_OF_METRIC = {  # for a stage that still runs and has no manifest: the first of these that its metrics hold
    "objective/kl": "online",
    "rewards/margins": "offline",
    "margin": "reward",
    "agreement": "distill",
    "mean_token_accuracy": "sft",
}
DEFAULT_POLICY = {"online": "ppo", "offline": "dpo"}  # what the evaluation calls a stage named after its kind
WALL = ("time/wall_seconds", "time/elapsed", "time/total")  # seconds since the stage began


class ReportError(ValueError):
    """A folder that cannot be reported on. The message names the folder and what was expected in it."""


@dataclasses.dataclass
class Stage:
    """One stage folder. `manifest` is None while the stage runs, or if it was stopped."""

    name: str  # step name: from the manifest, else the folder's
    kind: str  # one of KINDS, or "unknown"
    path: Path
    manifest: dict[str, Any] | None
    config: dict[str, Any] | None
    metrics: list[dict[str, Any]]  # rows of metrics.jsonl, in file order
    samples: list[dict[str, Any]]  # rows of samples.jsonl
    alarms: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # rows of alarms.jsonl

    @property
    def policy(self) -> str:
        """The name under which the evaluation knows this stage's policy."""
        return DEFAULT_POLICY.get(self.kind, self.name) if self.name == self.kind else self.name

    @property
    def step(self) -> int | None:
        """The last step, by the manifest or else by the metrics."""
        last = [row["step"] for row in self.metrics if isinstance(row.get("step"), int)][-1:]
        return (self.manifest or {}).get("step", last[0] if last else None)

    @property
    def wall_seconds(self) -> float | None:
        """Wall time in seconds, if the stage logged it under one of the names in WALL."""
        rows = [(self.manifest or {}).get("metrics") or {}, *reversed(self.metrics)]
        return next((float(row[key]) for row in rows for key in WALL if is_number(row.get(key))), None)


@dataclasses.dataclass
class Run:
    """A folder to report on: one stage, or a pipeline with one folder per stage."""

    path: Path
    stages: list[Stage]
    evaluation: dict[str, Any]  # eval.json, {} if there is none
    summary: dict[str, Any]  # summary.json, {} if there is none
    notes: list[str]  # what is not there or could not be read

    @property
    def policies(self) -> dict[str, dict[str, Any]]:
        return self.evaluation.get("policies") or {}

    @property
    def reward_model(self) -> dict[str, Any]:
        return self.evaluation.get("reward_model") or {}

    @property
    def single(self) -> bool:
        return len(self.stages) == 1 and self.stages[0].path == self.path

    @property
    def evaluated(self) -> Stage | None:
        """The stage that holds eval.json and the samples of every policy."""
        return next((stage for stage in self.stages if stage.kind == "evaluate"), None)


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_finite(value: Any) -> TypeGuard[float]:
    return is_number(value) and math.isfinite(value)


def label(policy: str) -> str:
    """'ppo' is written PPO; longer names stay as they are."""
    return policy.upper() if len(policy) <= 4 else policy


def read_run(workdir: str | Path) -> Run:
    """Reads a pipeline folder or a stage folder. Raises ReportError if it holds nothing that a report can show."""
    path = Path(workdir)
    if not path.is_dir():
        raise ReportError(f"{path} is not a folder; expected a run folder, such as the --workdir of `alignax run`")
    notes: list[str] = []
    folders = [path] if _is_stage(path) else sorted(child for child in path.iterdir() if _is_stage(child))
    if not folders:
        raise ReportError(
            f"{path} holds nothing to report: expected metrics.jsonl, manifest.json or eval.json in it, "
            f"or stage folders that hold them ({', '.join(KINDS)})"
        )
    stages = sorted((_read_stage(folder, path, notes) for folder in folders), key=_order)
    run = Run(path, stages, {}, _read_json(path / "summary.json", path, notes) or {}, notes)
    _read_evaluation(run)
    return run


def _is_stage(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("manifest.json", "metrics.jsonl", "eval.json"))


def _order(stage: Stage) -> tuple[int, str]:
    return (KINDS.index(stage.kind) if stage.kind in KINDS else len(KINDS), stage.name)


def _read_stage(folder: Path, root: Path, notes: list[str]) -> Stage:
    manifest = _read_json(folder / "manifest.json", root, notes)
    metrics = _read_metrics(folder / "metrics.jsonl", root, notes)
    name = (manifest or {}).get("name") or folder.resolve().name
    kind = (manifest or {}).get("stage") or _guess_kind(folder.resolve().name, metrics)
    if manifest is None:
        notes.append(f"{name}: no manifest.json, so this stage is unfinished; its last values are not final")
    if not metrics and kind not in ("evaluate", "collect", "select", "mine"):
        notes.append(f"{name}: no metrics.jsonl or no line in it, so no learning curves")
    config = _read_json(folder / "config.json", root, notes) or (manifest or {}).get("config")
    samples, alarms = (_read_lines(folder / f"{name}.jsonl", root, notes) for name in ("samples", "alarms"))
    return Stage(name, kind, folder, manifest, config, metrics, samples, alarms)


def _guess_kind(name: str, metrics: list[dict[str, Any]]) -> str:
    if name in KIND_OF_NAME:
        return KIND_OF_NAME[name]
    logged = {key for row in metrics for key in row}
    return next((kind for metric, kind in KIND_OF_METRIC.items() if metric in logged), "unknown")


def _read_evaluation(run: Run) -> None:
    stage = run.evaluated
    run.evaluation = (_read_json(stage.path / "eval.json", run.path, run.notes) if stage else None) or {}
    if run.single and stage is None:
        run.notes.append(
            "this is a single stage, so nothing to compare it with; a pipeline's folder has the comparison"
        )
        return
    if not run.policies:
        run.notes.append("evaluate/eval.json is not there or empty, so no gold and proxy rewards, win rates, intervals")
    if not run.reward_model:
        run.notes.append("no reward model was evaluated, so no accuracy and no calibration")
    if not (stage and stage.samples):
        run.notes.append("evaluate/samples.jsonl is not there or empty, so no samples side by side")


def _read_metrics(path: Path, root: Path, notes: list[str]) -> list[dict[str, Any]]:
    try:
        return read_metrics(path) if path.is_file() else []
    except ValueError as error:
        notes.append(f"{path.relative_to(root)} was left out: {error}")
        return []


def _read_json(path: Path, root: Path, notes: list[str]) -> dict[str, Any] | None:
    """The object in a file; None if the file is not there, or (with a note) if it holds no JSON object."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        notes.append(f"{path.relative_to(root)} is not valid JSON ({error}), so it was left out")
        return None
    if not isinstance(value, dict):
        notes.append(f"{path.relative_to(root)} holds no JSON object, so it was left out")
        return None
    return _restore(value)


def _restore(value: Any) -> Any:
    """JSON has no NaN: alignax.log writes floats that are not finite as strings, which become floats again here."""
    if isinstance(value, dict):
        return {name: _restore(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_restore(item) for item in value]
    known = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    return known.get(value, value) if isinstance(value, str) else value


def _read_lines(path: Path, root: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; lines that are none are counted in a note."""
    if not path.is_file():
        return []
    rows = [_parse(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    broken = sum(row is None for row in rows)
    if broken:
        notes.append(f"{path.relative_to(root)}: {broken} of {len(rows)} lines are no JSON object and were left out")
    return [row for row in rows if row is not None]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
