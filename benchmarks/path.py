"""How much of the house a pair (DPO) and a prompt (PPO) pass from their file to the gradient: files, lines, functions.

Command: python benchmarks/path.py
Runs the first steps of the tiny pipeline of benchmarks/kill_resume.py, then one update of DPO and one of PPO under a
profiler that notes every function of alignax that is called below those in ROOTS: data read and encoded, batches laid
out and placed, the step traced. A file counts whole, with all its lines. About a minute and a half on 2 CPU cores.
"""

import argparse
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from kill_resume import get_config
from rich.console import Console
from rich.table import Table

import alignax
from alignax.config import plain
from alignax.stages import offline, online, pipeline, probe

PACKAGE = Path(alignax.__file__).parent
# where the way begins, by file and function: rows to arrays, arrays to batches, batches to devices, and the step itself
ROOTS = {
    ("inputs.py", "encoded"), ("inputs.py", "load_rows"), ("loader.py", "__init__"), ("loader.py", "batch"),
    ("packing.py", "arrangement"), ("sharding.py", "put_batch"), ("step.py", "step"), ("online.py", "iteration"),
}  # fmt: skip


class Passed:
    """A profiler of this and all further threads: the functions of alignax that are called below ROOTS."""

    def __init__(self):
        self.functions: set[tuple[str, str, int]] = set()
        self._depth = threading.local()

    def __call__(self, frame: Any, event: str, arg: Any) -> None:
        code, depth = frame.f_code, getattr(self._depth, "of", 0)
        if event in ("call", "return") and (Path(code.co_filename).name, code.co_name) in ROOTS:
            self._depth.of = depth = depth + (1 if event == "call" else -1)
        if event == "call" and depth and code.co_filename.startswith(str(PACKAGE)):
            self.functions.add((code.co_filename, code.co_name, code.co_firstlineno))

    def watch(self, stage: Any, config: dict, workdir: Path) -> None:
        """Runs a stage under it."""
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            stage.run(config, workdir)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # pyright: ignore[reportArgumentType]


def main() -> None:
    """Measures and prints."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()  # --help
    table = Table("from file to gradient", "files", "lines", "functions", "files by room")
    with tempfile.TemporaryDirectory() as folder:
        run, c = Path(folder) / "run", plain(get_config())
        steps = ["sft", "collect", "reward"]
        pipeline.run({name: c[name] for name in steps} | {"steps": steps}, run)
        once = {"init_from": str(run / "sft"), "probe": plain(probe.get_config())}
        once |= {"total_steps": 1, "eval_every_steps": 0}
        pair = c["dpo"] | once | {"data": c["dpo"]["data"] | {"path": str(run / "collect")}}
        prompt = c["ppo"] | once | {"reward_from": str(run / "reward")}
        for what, stage, config in (("a pair, DPO", offline, pair), ("a prompt, PPO", online, prompt)):
            passed = Passed()
            passed.watch(stage, config, run / stage.__name__)
            files = sorted({Path(file).relative_to(PACKAGE) for file, _, _ in passed.functions})
            lines = sum(len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in files)
            rooms = [file.parts[0] for file in files if len(file.parts) > 1]
            by_room = ", ".join(f"{room} {rooms.count(room)}" for room in sorted(set(rooms)))
            table.add_row(what, str(len(files)), str(lines), str(len(passed.functions)), by_room)
    Console().print(table)


if __name__ == "__main__":
    main()
