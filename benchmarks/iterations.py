"""A whole iteration of GRPO beside TRL's: sampling, rewards, reference, update; and one of PPO with a critic.

Command: python benchmarks/iterations.py [--trl PYTHON] [--prompts 8] [--samples 8] [--cap 64] [--steps 4] [--repeats 2]
         [--shape llama_29m] [--out F]

Both start from the same weights and prompts, in processes of their own that take turns. No token ends a reply, so all
have the same length, and the reward is the share of even ids. One update a rollout, AdamW, a KL penalty of 0.04 with a
reference in memory. The first step, which compiles, does not count. TRL has dropped PPO with a critic, and Tunix cannot
stop at a length that is given, so PPO's row stands alone. `--trl` is an interpreter that has trl and PyTorch.

Columns: seconds an iteration (median over steps, then over repeats); new tokens per second over the whole iteration;
how many times faster alignax is (median, least, most of neighbouring runs); peak memory of the process (MB).
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alignax.log import replace_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what the benchmarks share
from benchmarks.processes import launch  # noqa: E402
from benchmarks.rollouts import SHAPES, checkpoint, random_prompts  # noqa: E402


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl", default="", help="interpreter of an environment that has TRL; without one it is out")
    parser.add_argument("--shape", default="llama_29m", choices=sorted(SHAPES))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="replies to each prompt")
    parser.add_argument("--cap", type=int, default=64, help="new tokens of every reply")
    parser.add_argument("--steps", type=int, default=4, help="iterations; the first does not count")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file for everything, with machine and versions")
    args = parser.parse_args()
    if args.steps < 2:
        parser.error(f"--steps {args.steps}: expected 2 or more: the first one compiles")
    field = [("alignax", sys.executable, "grpo"), ("alignax", sys.executable, "ppo")]
    field += [("trl", args.trl, "grpo")] if args.trl else []
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        known = checkpoint(args.shape, folder / "model")
        settings = {
            "folder": str(folder / "model"), "prompts": random_prompts(args.prompts, known["vocab"]),
            "vocab": known["vocab"], "samples": args.samples, "cap": args.cap, "steps": args.steps,
        }  # fmt: skip
        for repeat in range(args.repeats):
            for who, python, method in field:
                asked, at = settings | {"method": method}, folder / f"{repeat}-{who}-{method}"
                made = launch(python, f"engines/iterate_{who}.py", asked, at, ours=who == "alignax")
                if made:
                    results.append({"who": who, "method": method, "repeat": repeat} | made)
                    print(f"{who} {method}: {statistics.median(made['seconds'][1:]):.2f} s", flush=True)
    rows = summary(results, args.prompts * args.samples * args.cap)
    if not rows:
        raise SystemExit("nobody has a result: see above")
    table = Table(*rows[0], title=f"{platform.machine()}, {os.cpu_count()} cores")
    for row in rows:
        table.add_row(*(f"{v:,.4g}" if isinstance(v, float) else "" if v is None else str(v) for v in row.values()))
    Console(width=140).print(table)
    if args.out:
        machine = {"processor": platform.machine(), "cores": os.cpu_count()}
        asked = {k: v for k, v in vars(args).items() if k not in ("out", "trl")}
        written = {"machine": machine, "settings": asked, "rows": rows, "runs": results}
        replace_file(args.out, json.dumps(written, indent=1) + "\n")


def summary(results: list[dict], tokens: int) -> list[dict]:
    """A row per contender and method."""
    rows = []
    for who, method in dict.fromkeys((r["who"], r["method"]) for r in results):
        own, base = medians(results, who, method), medians(results, "alignax", method)
        ratios = sorted(own[k] / base[k] for k in own if k in base)
        last = [r for r in results if (r["who"], r["method"]) == (who, method)][-1]
        seconds = statistics.median(own.values())
        row = {"who": who, "method": method, "iteration_s": seconds, "tokens_per_s": tokens / seconds}
        row |= {"alignax_is": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]} if ratios else {}
        rows.append(row | {"peak_mb": last["peak_mb"], "version": last["version"]})
    return rows


def medians(results: list[dict], who: str, method: str) -> dict[int, float]:
    """{repeat: median seconds of the iterations that count}."""
    found = [r for r in results if (r["who"], r["method"]) == (who, method)]
    return {r["repeat"]: statistics.median(r["seconds"][1:]) for r in found}


if __name__ == "__main__":
    main()
