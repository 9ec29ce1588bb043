"""What learning k steps off-policy costs, and from partial rollouts, with a correction and without.

    python experiments/staleness/run.py [--seeds 0 1 2] [--only grpo-k0 grpo-k4-corrected] [--runs runs]

GRPO and RLOO, with the KL in the reward, learn on the harbour desk from replies of the weights of 0, 1 and 4 steps ago,
and from partial rollouts, of which one batch beside each goes on in the next steps. RLOO's loss knows
no ratio, so that without a correction it takes old replies for its own; GRPO's clips the ratio to whoever sampled.
Starts from the SFT policies and first reward models of `experiments/rewards/run.py`: run that first, for these seeds.
A run that has finished with the same config is not run again. Hardware: 2 CPU cores, about a minute per run. Writes
results/results.json and results/results.md beside this file.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from alignax.evals.intervals import spread
from alignax.log import read_metrics
from alignax.main import load_config
from alignax.report.experiment import cell, made_with, options, publish, versions
from alignax.stages import online

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
METHODS, HOW = ("grpo", "rloo"), ("k0", "k1", "k4", "partial1")
FINAL = {"gold_reward": "eval/gold_reward", "proxy_reward": "eval/proxy_reward", "kl": "eval/kl"}
# means over the iterations: how old replies are, how far from the learner's own, and the seconds of one
PATH = {"staleness": "sampling/staleness", "difference": "sampling/sampling_logp_difference/mean"}
TITLES = {
    "gold_reward": "gold reward",
    "proxy_reward": "score of the reward model",
    "kl": "KL (nats)",
    "staleness": "staleness (steps)",
    "difference": "log-prob. difference (nats)",
    "seconds": "seconds per iteration",
}


def names() -> list[str]:
    """What is run: 'rloo-k4-corrected', 'grpo-partial1'."""
    variants = [f"{how}{tail}" for how in HOW for tail in ("", "-corrected") if how != "k0" or not tail]
    return [f"{method}-{variant}" for method in METHODS for variant in variants]


def config_of(name: str, seed: int, base: Path) -> Any:
    """The config of one run."""
    method, how, *corrected = name.split("-")
    c = load_config(str(ROOT / f"configs/world/online.py:{method}"), [])
    c.seed, c.data.seed = seed, seed
    c["partial_rollouts" if how.startswith("partial") else "steps_off_policy"] = int(how[-1])
    c.init_from, c.reward_from = str(base / "sft"), str(base / "reward_0")
    c.kl_placement, c.kl_estimator, c.kl_coef, c.kl_loss_args = "reward", "k1", 0.05, {}
    c.kl_controller, c.kl_controller_args = "adaptive_kl", dict(target=3.0, horizon=320.0)  # nats; episodes
    if corrected:
        c.correction = "truncated_weights"
    c.probe.data.count, c.eval_every_steps = 512, 0
    return c


def run_one(name: str, seed: int, base: Path, folder: Path) -> dict[str, float | None]:
    """Final gold reward, proxy and KL of one run, and what its iterations were like."""
    online.run(config_of(name, seed, base), folder)
    final = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["split"] == "train"]
    found: dict[str, float | None] = {metric: final[key] for metric, key in FINAL.items()}
    for metric, key in PATH.items():
        found[metric] = statistics.fmean(row[key] for row in rows) if key in rows[0] else None
    found["seconds"] = statistics.median(row["time/step"] for row in rows[2:])
    return found


def results(per_seed: dict[str, dict[int, dict]]) -> dict[str, Any]:
    """Everything that goes into results.json. No path of this machine."""
    table: dict[str, Any] = {}
    for name, runs in per_seed.items():
        row: dict[str, Any] = {"seeds": sorted(runs)}
        for metric in TITLES:
            values = [run[metric] for run in runs.values()]
            row[metric] = None if None in values else spread(values)
        table[name] = row
    seeds = {name: {str(seed): run for seed, run in runs.items()} for name, runs in per_seed.items()}
    return made_with() | {"table": table, "per_seed": seeds}


def markdown(found: dict[str, Any]) -> str:
    """The table."""
    rows = [("run", "seeds", *TITLES.values()), ("---", "---:", *["---:"] * len(TITLES))]
    for name, row in found["table"].items():
        cells = (cell(row[metric], 3 if metric in ("difference", "seconds") else 2) for metric in TITLES)
        rows.append((name, str(len(row["seeds"])), *cells))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    facts = [
        "- Means over seeds, 95% t-intervals in brackets where there are several. Evaluated on 512 prompts.",
        "- Staleness and difference are means over all iterations; of the seconds the median.",
        f"- {versions(found)}.",
    ]
    return "\n".join([*lines, "", *facts]) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__ or "", ROOT, HERE)
    parser.add_argument("--only", nargs="+", default=names(), choices=names(), metavar="NAME")
    args = parser.parse_args(argv)
    per_seed: dict[str, dict[int, dict]] = {}
    for seed in args.seeds:
        base = args.runs / f"rewards-seed{seed}"
        if not (base / "reward_0" / "manifest.json").is_file():
            parser.error(f"{base} has no reward model: run experiments/rewards/run.py --seeds {seed} first")
        for name in args.only:
            folder = args.runs / f"staleness-seed{seed}" / name
            per_seed.setdefault(name, {})[seed] = run_one(name, seed, base, folder)
            found = results(per_seed)
            publish(args, "", found, markdown(found))  # what there is so far


if __name__ == "__main__":
    main()
