"""Twenty questions between two policies: games won and questions asked before GRPO and after, over seeds.

    python experiments/questions/run.py [--seeds 0 1 2] [--runs runs]

Hardware: 2 CPU cores, a few minutes per seed. Writes results/results.json and results/results.md beside this file.
"""

import json
from pathlib import Path

from alignax.config import plain
from alignax.evals.intervals import spread
from alignax.log import plain_json
from alignax.main import load_config
from alignax.manifest import config_hash
from alignax.report.experiment import cell, made_with, options, publish, run_seed, versions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONFIG = "configs/world/questions.py"
POLICIES = ("sft", "grpo")
METRICS = {"games won": "questions/won", "reward": "gold_reward", "questions": "env/turns", "KL (nats)": "kl"}


def results(runs: dict[int, dict]) -> dict:
    """Everything that goes into results.json: {policy: {metric: its mean and interval over seeds}}."""
    table = {
        name: {title: spread([run[name][key] for run in runs.values()]) for title, key in METRICS.items()}
        for name in POLICIES
    }
    return {
        "config": CONFIG,
        "config_hash": config_hash(plain_json(plain(load_config(str(ROOT / CONFIG), [])))),
        "seeds": list(runs),
        **made_with(),
        "table": table,
        "per_seed": {str(seed): run for seed, run in runs.items()},
    }


def markdown(found: dict) -> str:
    """The results as a Markdown table with the facts below it."""
    rows = [("policy", *METRICS), ("---", *["---:"] * len(METRICS))]
    rows += [(name, *(cell(row[title], 2) for title in METRICS)) for name, row in found["table"].items()]
    facts = [
        f"- Seeds {', '.join(map(str, found['seeds']))}; means over seeds, 95% t-intervals in brackets where there are "
        "several; 512 games each, 16 of each thing.",
        f"- {versions(found)}.",
    ]
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + ["", *facts]) + "\n"


def main(argv: list[str] | None = None) -> None:
    args = options(__doc__ or "", ROOT, HERE).parse_args(argv)
    runs = {}
    for seed in args.seeds:
        folder = args.runs / f"questions-seed{seed}"
        run_seed(ROOT, CONFIG, seed, folder)
        runs[seed] = json.loads((folder / "played/eval.json").read_text(encoding="utf-8"))["policies"]
        found = results(runs)
        publish(args, "", found, markdown(found))  # what there is so far


if __name__ == "__main__":
    main()
