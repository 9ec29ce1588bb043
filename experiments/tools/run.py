"""A policy learns to call its tool: accuracy with the calculator and without, over seeds.

    python experiments/tools/run.py [--seeds 0 1 2] [--runs runs]

Hardware: 2 CPU cores, about 4 minutes per seed. Writes results/results.json and results/results.md beside this file.
"""

import json
from pathlib import Path

from alignax.config import plain
from alignax.evals.intervals import spread
from alignax.main import load_config
from alignax.report.experiment import cell, of_seeds, options, publish, run_seed, versions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONFIG = "configs/world/tools.py"
BEGIN = "<!-- results:tools -->"
# (policy, the step that measured it): a row of the table
ROWS = {
    "SFT, shown the tool": ("sft", "with_tool"),
    "GRPO with the tool, shown it": ("grpo_tool", "with_tool"),
    "SFT, not shown it": ("sft", "without"),
    "GRPO without the tool, not shown it": ("grpo", "without"),
    "GRPO with the tool, not shown it": ("grpo_tool", "without"),
}
METRICS = {"accuracy": "gold_reward", "calls": "tools/calls", "failures": "tools/failures", "kl": "kl"}


def measured(folder: Path) -> dict:
    """{step: {policy: its means}} of a finished run."""
    read = lambda name: json.loads((folder / name / "eval.json").read_text(encoding="utf-8"))["policies"]  # noqa: E731
    return {name: read(name) for name in ("with_tool", "without")}


def collect(runs: list[dict]) -> dict:
    """{row: {metric: its mean and interval over seeds}}; a metric that no run has of a policy is left out."""
    found = {}
    for row, (policy, step) in ROWS.items():
        of = [run[step][policy] for run in runs]
        found[row] = {name: spread([one[key] for one in of]) for name, key in METRICS.items() if key in of[0]}
    found["gain of the tool"] = {
        "accuracy": spread(
            [run["with_tool"]["grpo_tool"]["gold_reward"] - run["without"]["grpo"]["gold_reward"] for run in runs]
        )
    }
    return found


def results(runs: dict[int, dict]) -> dict:
    """Everything that goes into results.json: figures, and what they were made with."""
    effective = plain(load_config(str(ROOT / CONFIG), []))
    return of_seeds(HERE, CONFIG, effective, runs, table=collect(list(runs.values())))


def markdown(found: dict) -> str:
    """The results as a Markdown table with the facts below it."""
    rows = [("policy", "accuracy", "calls per reply", "failed calls per reply", "KL (nats)")]
    rows.append(("---", *["---:"] * len(METRICS)))
    for name, row in found["table"].items():
        rows.append((name, *(cell(row.get(metric), 2) for metric in METRICS)))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    facts = [
        f"- Seeds {', '.join(map(str, found['seeds']))}; means over seeds, 95% t-intervals in brackets; 512 held-out "
        "prompts each.",
        "- Gain of the tool: accuracy of GRPO with the tool, shown it, less that of GRPO without, seed by seed.",
        f"- {versions(found)}.",
    ]
    return "\n".join([*lines, "", *facts]) + "\n"


def main(argv: list[str] | None = None) -> None:
    args = options(__doc__ or "", ROOT, HERE).parse_args(argv)
    folders = {seed: args.runs / f"tools-seed{seed}" for seed in args.seeds}
    for seed, folder in folders.items():
        run_seed(ROOT, CONFIG, seed, folder)
    found = results({seed: measured(folder) for seed, folder in folders.items()})
    publish(args, BEGIN, found, markdown(found))


if __name__ == "__main__":
    main()
