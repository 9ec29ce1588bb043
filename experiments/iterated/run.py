"""Iterated RLHF, three rounds: gold reward by round, and the lineage of the last policy.

    python experiments/iterated/run.py [--seeds 0] [--runs runs]

Hardware: 2 CPU cores. Writes results/results.json, results/results.md and results/lineage.txt beside this file.
"""

import json
from pathlib import Path

from alignax.config import plain
from alignax.evals.intervals import spread
from alignax.lineage import lineage
from alignax.log import replace_file
from alignax.main import load_config
from alignax.manifest import read_manifest
from alignax.report.experiment import cell, of_seeds, options, publish, run_seed, versions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONFIG = "configs/world/iterated_rlhf.py"
BEGIN = "<!-- results:iterated -->"
METRICS = ("gold_reward", "gold_gain", "kl", "length", "eos_rate")
JUDGED = ("heldout_accuracy", "gold_accuracy")


def read(folder: Path) -> dict:
    """What one seed ended with: the policies of all rounds, and the reward model of each."""
    table = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["stages"]
    times = json.loads((folder / "times.json").read_text(encoding="utf-8"))
    rounds = sorted(name.removeprefix("ppo_") for name in table if name.startswith("ppo_"))
    models = {}
    for i in rounds:
        manifest = read_manifest(folder / f"reward_{i}")
        counts = manifest["data"]["counts"]
        models[f"ppo_{i}"] = {name: manifest["metrics"][name] for name in JUDGED}
        models[f"ppo_{i}"]["pairs"] = counts["train"]["kept"] + counts["heldout"]["kept"]
    return {"policies": table, "reward_models": models, "wall_seconds": sum(times.values())}


def results(runs: dict[int, dict]) -> dict:
    """Everything that goes into results.json: figures, and what they were made with. No path of this machine."""
    first = next(iter(runs.values()))
    over = lambda get: spread([get(run) for run in runs.values()])  # noqa: E731
    table = {}
    for name in first["policies"]:
        table[name] = {metric: over(lambda run, n=name, m=metric: run["policies"][n][m]) for metric in METRICS}
        if name in first["reward_models"]:
            judged = first["reward_models"][name]
            table[name] |= {m: over(lambda run, n=name, m=m: run["reward_models"][n][m]) for m in judged}
    effective = plain(load_config(str(ROOT / CONFIG), []))
    return of_seeds(HERE, CONFIG, effective, runs, table=table)


def markdown(found: dict) -> str:
    """The results as a Markdown table with the facts below it; of one seed the intervals are over prompts."""
    alone = found["per_seed"][str(found["seeds"][0])]["policies"] if len(found["seeds"]) == 1 else {}
    header = ("policy", "gold reward", "gain over SFT", "KL to SFT (nats)", "length", "ended", "accuracy of its RM",
              "its agreement with gold", "pairs")  # fmt: skip
    lines = [header, ("---", *["---:"] * (len(header) - 1))]
    for name, row in found["table"].items():
        cells = []
        for metric, decimals in (
            *zip(METRICS, (2, 2, 2, 1, 2)),
            ("heldout_accuracy", 3),
            ("gold_accuracy", 3),
            ("pairs", 0),
        ):
            value = row.get(metric)
            over_prompts = alone.get(name, {}).get(f"{metric}_ci95")
            cells.append(cell(value | {"ci95": over_prompts} if value and over_prompts else value, decimals))
        lines.append((name, *cells))
    over = "95% bootstrap intervals over prompts" if alone else "means over seeds, 95% t-intervals"
    facts = [f"- Seeds {', '.join(map(str, found['seeds']))}; {over} in brackets.", f"- {versions(found)}."]
    return "\n".join(["| " + " | ".join(row) + " |" for row in lines] + ["", *facts]) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, ROOT, HERE)
    parser.set_defaults(seeds=[0])
    args = parser.parse_args(argv)
    folders = {seed: args.runs / f"iterated-seed{seed}" for seed in args.seeds}
    for seed, folder in folders.items():
        run_seed(ROOT, CONFIG, seed, folder)
    found = results({seed: read(folder) for seed, folder in folders.items()})
    publish(args, BEGIN, found, markdown(found))
    last = max(name for name in found["table"] if name.startswith("ppo_"))
    replace_file(args.out / "lineage.txt", lineage(next(iter(folders.values())) / last) + "\n")


if __name__ == "__main__":
    main()
