"""What every contender of benchmarks/peers.py does alike. Standard library alone: each has an environment of its own.

A contender is called with two files: settings to read and a result to write, both JSON.
"""

import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for what the benchmarks share
from peak import peak_mb  # noqa: E402, F401


def load() -> tuple[dict, list[dict]]:
    """The settings, and the pairs: each has "prompt", "chosen", "rejected" as text, and as ids under "..._ids"."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    lines = Path(settings["data"], "train.jsonl").read_text(encoding="utf-8").splitlines()
    return settings, [json.loads(line) for line in lines]


def real_tokens(loss: str, pair: dict) -> int:
    """Tokens that are no padding: prompt and chosen reply of SFT, prompt and reply of both sides of the other losses.

    Counted alike for every contender, whatever it pads, packs, or shares between the sides of a pair.
    """
    prompt, chosen, rejected = (len(pair[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected"))
    return prompt + chosen if loss == "sft" else 2 * prompt + chosen + rejected


class Ends:
    """When the steps of a run ended, and the memory that it had taken by then."""

    def __init__(self):
        self.wall: list[float] = []  # seconds
        self.processor: list[float] = []  # seconds, of all threads of this process
        self.peak_mb = 0.0

    def note(self) -> None:
        """One more step is over."""
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())
        self.peak_mb = peak_mb()


class Compiles:
    """Counts what XLA compiles from now on, and when."""

    def __init__(self):
        import jax

        self.events: list[tuple[float, float]] = []  # moment of the end, seconds
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.events.append((time.perf_counter(), seconds))

    def report(self) -> dict:
        """How many there were, and their seconds."""
        return {"compiles": len(self.events), "compile_s": sum(seconds for _, seconds in self.events)}


def counted(settings: dict, ends: Ends, compiles: Compiles | None) -> list[int]:
    """The steps that count: those after the warm-up in which nothing was compiled.

    A program that meets a new shape after its warm-up compiles for it while it waits for the step before, which is
    then left out, its tokens as well as its time.
    """
    moments = [moment for moment, _ in compiles.events] if compiles else []
    steps = range(settings["warmup_steps"], len(ends.wall))
    return [k for k in steps if not any(ends.wall[k - 1] < moment <= ends.wall[k] for moment in moments)]


def finish(
    settings: dict, ends: Ends, tokens: list[int], losses: list[float], packages: tuple[str, ...],
    compiles: Compiles | None = None, **fields,
) -> None:  # fmt: skip
    """Writes the result over the steps that count, which read `tokens` each, from 0.

    `losses` are what was logged; `fields` go into the result as they are. Raises RuntimeError if no step counts.
    """
    steps = counted(settings, ends, compiles)
    if not steps:
        raise RuntimeError(f"{len(ends.wall)} steps, none without a compile after the warm-up: ask for more pairs")
    seconds, processor = (sum(at[k] - at[k - 1] for k in steps) for at in (ends.wall, ends.processor))
    read = sum(tokens[k] for k in steps)
    versions = {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
    result = {
        "seconds": seconds, "steps": len(steps), "left_out": len(ends.wall) - settings["warmup_steps"] - len(steps),
        "tokens": read, "tokens_per_s": read / seconds, "tokens_per_cpu_s": read / processor, "peak_mb": ends.peak_mb,
        "first_loss": losses[0], "last_loss": losses[-1], "versions": versions,
    }  # fmt: skip
    result |= (compiles.report() if compiles else {}) | fields
    Path(sys.argv[2]).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
