"""A pipeline: named steps in one folder, each a stage; '@name' in a config is the folder of an earlier step."""

import json
import time
from pathlib import Path
from typing import Any

from rich.markup import escape

from alignax import host
from alignax.config import ConfigError, plain, spelled, suggest
from alignax.log import console, replace_file
from alignax.stages.folder import named, say
from alignax.stages.plans import made, module_of


def run(config: Any, workdir: str | Path) -> Path:
    """Runs a stage, or every step of a pipeline, in `workdir`. What is finished and still current is not run again."""
    config, workdir, begun = plain(config), Path(workdir), time.perf_counter()
    if "steps" not in config:
        plan = made(config)
        show(config)
        return module_of(config).run(config, workdir, None, plan)
    plans = planned(config)
    show(config)
    for name, plan in plans.items():
        started = time.perf_counter()
        if host.is_first():
            console.rule(f"[bold]{name}")
        module_of(config[name]).run(config[name], workdir / name, workdir, plan)
        if host.is_first():
            note_time(workdir, name, time.perf_counter() - started)
    if host.is_first():
        write_summary(workdir, config, time.perf_counter() - begun)
    return workdir


def planned(config: dict) -> dict[str, Any]:
    """The plans of the steps, by name: a mistake in the last stops the first."""
    plans = {}
    for name in config["steps"]:
        if name not in config:
            raise ConfigError(f"config.steps names {name!r}, but config.{name} is not there{suggest(name, config)}")
        plan = made(config[name], prefix=f"{name}.")
        for parent, path in named(module_of(config[name]).STAGE, config[name]).values():
            step = path[1:].split("/")[0]
            if path.startswith("@") and step not in plans:
                hint = suggest(step, plans)
                raise ConfigError(f"config.{name}.{parent.key} = {path!r}: no step {step!r} comes before it{hint}")
        plans[name] = plan
    extra = set(config) - set(plans) - {"steps", "seed"}
    if extra:
        raise ConfigError(f"config.{', config.'.join(sorted(extra))}: nothing runs it; add it to config.steps")
    return plans


def show(config: dict) -> None:
    """Prints the effective config."""
    say("[bold]config[/]")
    say(escape(json.dumps(spelled(config), indent=1)), style="dim")


def note_time(workdir: Path, name: str, seconds: float) -> None:
    """Keeps the wall time of a step that did work; a finished one that was only looked at keeps what it had."""
    path = workdir / "times.json"
    times = json.loads(path.read_text()) if path.is_file() else {}
    times[name] = max(seconds, times.get(name, 0.0))
    replace_file(path, json.dumps(times, indent=1) + "\n")


def write_summary(workdir: Path, config: dict, seconds: float) -> None:
    """summary.json: the end table, and the wall time of this command in seconds."""
    found = [workdir / name / "eval.json" for name in config["steps"]]
    found = [path for path in found if path.is_file()]
    table = json.loads(found[-1].read_text()) if found else {"policies": {}, "reward_model": {}}
    summary = {"stages": table["policies"], "reward": table["reward_model"], "wall_seconds": round(seconds, 1)}
    replace_file(workdir / "summary.json", json.dumps(summary, indent=1) + "\n")
