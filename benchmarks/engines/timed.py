"""What every engine of benchmarks/rollouts.py does alike. Standard library alone: vLLM has an environment of its own.

An engine is called with two files: settings to read and a result to write, both JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for what the benchmarks share
from peak import peak_mb  # noqa: E402, F401


def settings() -> dict:
    """What is asked."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def run(asked: dict, version: str, rollout: Callable[[int], list[int]], **fields) -> None:
    """Times `rollout(round)`, which returns the number of new tokens of each reply, its end included; writes it all."""
    rounds = []
    for number in range(asked["rounds"]):
        start = time.perf_counter()
        lengths = rollout(number)
        seconds = time.perf_counter() - start
        rounds.append({"tokens": sum(lengths), "replies": len(lengths), "longest": max(lengths), "seconds": seconds})
        print(rounds[-1], flush=True)
    peak = peak_mb()
    made = {"version": version, "rounds": rounds, "peak_mb": peak} | fields
    Path(sys.argv[2]).write_text(json.dumps(made), encoding="utf-8")
