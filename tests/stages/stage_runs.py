"""Runs of small stages and pipelines, and what is read from them."""

import importlib.util
import json
from pathlib import Path

from alignax.main import load_config, main

ROOT = Path(__file__).parents[2]
TINY = ROOT / "benchmarks/kill_resume.py"  # the quickstart made tiny


def tiny(*overrides, size="whole"):
    """The config of the tiny pipeline."""
    return load_config(f"{TINY}:{size}", list(overrides))


def alone(run, step, **changes):
    """A step of the tiny pipeline by itself, on what the pipeline made in `run`: two updates, nothing measured."""
    from alignax.config import plain
    from alignax.stages import probe

    c = plain(tiny()[step]) | {"total_steps": 2, "eval_every_steps": 0, "save_every_steps": 2} | changes
    if step == "sft":
        return c
    c |= {"init_from": str(run / "sft")}
    if step == "ppo":
        return c | {"reward_from": str(run / "reward"), "probe": plain(probe.get_config())}
    c |= {"data": c["data"] | {"path": str(run / "collect")}}
    return c | ({"probe": plain(probe.get_config())} if step == "dpo" else {})


def file_config(name, *overrides):
    """A config file of the repository, by its path under configs/."""
    return load_config(str(ROOT / "configs" / name), list(overrides))


def facts(folder):
    """Everything that two equal runs share, bit for bit."""
    spec = importlib.util.spec_from_file_location("kill_resume", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.facts(folder)


def read(path):
    """A JSON file."""
    return json.loads(Path(path).read_text())


def metrics(stage, split="train"):
    """The rows of one split of a stage's log."""
    rows = map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["split"] == split]


def finished(folder):
    """{stage: time of its manifest}."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/manifest.json")}


def fails(capsys, *arguments):
    """Runs a command that must fail: exit status 1, nothing on stdout, no traceback. Returns its message, one line."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return " ".join(err.split())


def write_rows(path, rows):
    """A JSON-lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
