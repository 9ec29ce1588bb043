"""A contender of a benchmark in a process of its own: settings in a JSON file, a result out of another."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Memory that is freed is kept, in huge pages: without it TRL took 1.7 times the processor time
MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=8589934592"


def launch(python: str, script: str, settings: dict, folder: Path, *, ours: bool, malloc: str = MALLOC) -> dict | None:
    """One run of `benchmarks/<script>`; None, with its last words printed, if it fails.

    `ours`: it imports this checkout. `malloc`: how the C library keeps memory.
    """
    folder.mkdir(parents=True)
    asked, made = folder / "settings.json", folder / "run.json"
    asked.write_text(json.dumps(settings), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "GLIBC_TUNABLES": malloc}
    environment |= {"PYTHONPATH": str(ROOT)} if ours else {}
    with (folder / "log.txt").open("w") as log:
        command = [python, str(ROOT / "benchmarks" / script), str(asked), str(made)]
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, cwd=folder)
    if done.returncode:
        last = (folder / "log.txt").read_text(errors="replace").splitlines()[-15:]
        print("\n".join([f"{folder.name}: no result", *last]), file=sys.stderr, flush=True)
        return None
    return json.loads(made.read_text()) if made.is_file() else {}
