"""A whole iteration of GRPO beside TRL's and Tunix's: sampling, rewards, reference, update; and one of PPO, critic too.

Command: python benchmarks/iterations.py [--trl PYTHON] [--tunix PYTHON] [--prompts 8] [--samples 8] [--cap 256]
         [--mean-length 64] [--micro 4] [--steps 4] [--repeats 2] [--shape llama_29m] [--methods grpo,ppo] [--out F]

All start from the same weights and prompts, in processes of their own that take turns. One token ends a reply, with a
probability that makes lengths geometric (`--mean-length 0`: none does, and all replies have the length of the cap). The
reward is the share of even ids. One update a rollout, AdamW, a KL penalty of 0.04 with a reference in memory, gradients
in `--micro` parts (of alignax, where lengths differ, in one for each prompt: it cuts each to its replies). The first
step, which compiles, does not count. TRL and Tunix have no PPO of this kind (TRL has dropped its critic), so PPO's row
stands alone. `--methods grpo,grpo-partial`: with a batch of prompts begun beside each, whose replies go on in the next
iteration. `--trl`, `--tunix`: interpreters that have them.

Columns: seconds an iteration (median); mean length of the replies; new tokens per second
over the iterations that count; how many times more of them alignax makes (median, least, most of neighbouring runs:
lengths are drawn anew by everybody); peak memory of the process (MB); parts of an update; seconds of the first
iteration. Of alignax also seconds of sampling, which is timed as a program of its own, and of all else.
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
    parser.add_argument("--tunix", default="", help="the same of Tunix")
    parser.add_argument("--methods", default="grpo,ppo", help="of alignax")
    parser.add_argument("--shape", default="llama_29m", choices=sorted(SHAPES))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8, help="replies to each prompt")
    parser.add_argument("--cap", type=int, default=256, help="new tokens of a reply at most")
    parser.add_argument("--mean-length", type=float, default=64.0, help="of replies without a cap; 0: none ends")
    parser.add_argument("--micro", type=int, default=4, help="parts of an update; they divide the prompts")
    parser.add_argument("--steps", type=int, default=4, help="iterations; the first does not count")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file for everything, with machine and versions")
    args = parser.parse_args()
    if args.steps < 2:
        parser.error(f"--steps {args.steps}: expected 2 or more: the first one compiles")
    if 0 < args.mean_length <= 1:
        parser.error(f"--mean-length {args.mean_length}: expected more than 1 token, or 0: no reply ends by itself")
    if args.prompts % args.micro:
        parser.error(f"--micro {args.micro}: expected a divisor of --prompts {args.prompts}")
    field = [("alignax", sys.executable, method) for method in args.methods.split(",")]
    field += [(who, python, "grpo") for who, python in (("trl", args.trl), ("tunix", args.tunix)) if python]
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        known = checkpoint(args.shape, folder / "model", args.mean_length)
        settings = {
            "folder": str(folder / "model"), "prompts": random_prompts(args.prompts, known["vocab"]),
            "vocab": known["vocab"], "samples": args.samples, "cap": args.cap, "steps": args.steps,
            "micro": args.micro, "ends": bool(args.mean_length), "end": 0,
        }  # fmt: skip
        for repeat in range(args.repeats):
            for who, python, method in field:
                asked, at = settings | {"method": method}, folder / f"{repeat}-{who}-{method}"
                made = launch(python, f"engines/iterate_{who}.py", asked, at, ours=who == "alignax")
                if made:
                    results.append({"who": who, "method": method, "repeat": repeat, "parts": args.micro} | made)
                    print(f"{who} {method}: {statistics.median(made['seconds'][1:]):.2f} s", flush=True)
    rows = summary(results, args.prompts * args.samples)
    if not rows:
        raise SystemExit("nobody has a result: see above")
    table = Table(*rows[0], title=f"{platform.machine()}, {os.cpu_count()} cores")
    for row in rows:
        values = (row.get(name) for name in rows[0])
        table.add_row(*(f"{v:,.4g}" if isinstance(v, float) else "" if v is None else str(v) for v in values))
    Console(width=160).print(table)
    if args.out:
        machine = {"processor": platform.machine(), "cores": os.cpu_count()}
        asked = {k: v for k, v in vars(args).items() if k not in ("out", "trl", "tunix")}
        written = {"machine": machine, "settings": asked, "rows": rows, "runs": results}
        replace_file(args.out, json.dumps(written, indent=1) + "\n")


def summary(results: list[dict], replies: int) -> list[dict]:
    """A row per contender and method."""
    rows = []
    for who, method in dict.fromkeys((r["who"], r["method"]) for r in results):
        own, base = (speeds(results, one, method, replies) for one in (who, "alignax"))
        ratios = sorted(base[k] / own[k] for k in own if k in base)
        runs = [r for r in results if (r["who"], r["method"]) == (who, method)]
        seconds, lengths = ([x for r in runs for x in r[name][1:]] for name in ("seconds", "lengths"))
        row = {"who": who, "method": method, "iteration_s": statistics.median(seconds)}
        row |= {"mean_length": statistics.mean(lengths), "tokens_per_s": statistics.median(own.values())}
        row |= dict(zip(("alignax_is", "least", "most"), (statistics.median(ratios), ratios[0], ratios[-1])))
        row |= {name: runs[-1][name] for name in ("peak_mb", "parts", "version")}
        row["first_s"] = runs[-1]["seconds"][0]
        rows.append(row | {name: runs[-1].get(name) for name in ("sampling_s", "rest_s")})
    return rows


def speeds(results: list[dict], who: str, method: str, replies: int) -> dict[int, float]:
    """{repeat: new tokens per second over the iterations that count}."""
    found = [r for r in results if (r["who"], r["method"]) == (who, method)]
    return {r["repeat"]: replies * sum(r["lengths"][1:]) / sum(r["seconds"][1:]) for r in found}


if __name__ == "__main__":
    main()
