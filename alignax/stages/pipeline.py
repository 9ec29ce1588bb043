"""A pipeline: named steps in one folder, each a stage; '@name' in a config is the folder of an earlier step."""

import importlib
import json
import time
from pathlib import Path
from typing import Any

from rich.markup import escape

from alignax.config import ConfigError, plain, suggest
from alignax.log import replace_file
from alignax.stages.common import console
from alignax.stages.precheck import precheck

STAGES = ("imported", "sft", "collect", "reward", "online", "offline", "distill", "evaluate")


def run(config: Any, workdir: str | Path) -> Path:
    """Runs a stage, or every step of a pipeline, in `workdir`. What is finished and still current is not run again."""
    config, workdir, begun = plain(config), Path(workdir), time.perf_counter()
    if "steps" not in config:
        precheck(config)
        show(config)
        stage_of(config).run(config, workdir)
        return workdir
    steps = check_steps(config)
    show(config)
    for name in steps:
        started = time.perf_counter()
        console.rule(f"[bold]{name}")
        stage_of(config[name]).run(config[name], workdir / name, root=workdir)
        note_time(workdir, name, time.perf_counter() - started)
    write_summary(workdir, config, time.perf_counter() - begun)
    return workdir


def check_steps(config: dict) -> list[str]:
    """The names of the steps, once the config of each has been checked: a mistake in the last stops the first."""
    steps = list(config["steps"])
    for name in steps:
        if name not in config:
            raise ConfigError(f"config.steps names {name!r}, but config.{name} is not there{suggest(name, config)}")
        precheck(config[name], prefix=f"{name}.")
    extra = set(config) - set(steps) - {"steps", "seed"}
    if extra:
        raise ConfigError(f"config.{', config.'.join(sorted(extra))}: nothing runs it; add it to config.steps")
    return steps


def stage_of(config: dict) -> Any:
    """The module of a stage."""
    name = config.get("stage")
    if name not in STAGES:
        raise ConfigError(f"config.stage = {name!r}: expected one of {', '.join(STAGES)}")
    return importlib.import_module(f"alignax.stages.{name}")


def show(config: dict) -> None:
    """Prints the effective config."""
    console.print("[bold]config[/]")
    console.print(escape(json.dumps(config, indent=1)), style="dim")


def note_time(workdir: Path, name: str, seconds: float) -> None:
    """Keeps the wall time of a step that did work; a finished one that was only looked at keeps what it had."""
    path = workdir / "times.json"
    times = json.loads(path.read_text()) if path.is_file() else {}
    times[name] = max(seconds, times.get(name, 0.0))
    replace_file(path, json.dumps(times, indent=1) + "\n")


def write_summary(workdir: Path, config: dict, seconds: float) -> None:
    """summary.json: the end table, and the wall time of this command in seconds."""
    found = [workdir / name / "eval.json" for name in config["steps"] if config[name]["stage"] == "evaluate"]
    table = json.loads(found[-1].read_text()) if found else {"policies": {}, "reward_model": {}}
    summary = {"stages": table["policies"], "reward": table["reward_model"], "wall_seconds": round(seconds, 1)}
    replace_file(workdir / "summary.json", json.dumps(summary, indent=1) + "\n")
