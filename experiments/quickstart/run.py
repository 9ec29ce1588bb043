"""The quickstart over seeds: means with 95% t-intervals, and whether PPO and DPO end above SFT.

    python experiments/quickstart/run.py [--seeds 0 1 2] [--runs runs] [--write-readme]

Hardware: 2 CPU cores. Writes results/results.json and results/results.md beside this file.
"""

import json
from pathlib import Path

from alignax.config import plain
from alignax.evals.intervals import spread
from alignax.log import plain_json
from alignax.main import load_config
from alignax.report.experiment import cell, of_seeds, options, publish, run_seed, versions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONFIG = "configs/quickstart.py"
POLICIES = ("sft", "ppo", "dpo")
METRICS = ("gold_reward", "proxy_reward", "kl", "length")
BEGIN = "<!-- results:quickstart -->"


def config_of(seed: int) -> dict:
    """The effective config of a seed."""
    return plain_json(plain(load_config(str(ROOT / CONFIG), [f"--config.seed={seed}"])))


def is_finished(folder: Path, config: dict) -> bool:
    """Whether the run in `folder` has ended, every step of it with this config."""
    manifests = [folder / name / "manifest.json" for name in config["steps"]]
    if not (folder / "summary.json").is_file() or not all(path.is_file() for path in manifests):
        return False
    found = [json.loads(path.read_text(encoding="utf-8"))["config"] for path in manifests]
    return found == [config[name] for name in config["steps"]]


def run_unless_finished(seed: int, folder: Path) -> None:
    """Runs the quickstart with a seed; goes on where it was stopped."""
    if is_finished(folder, config_of(seed)):
        print(f"seed {seed}: finished before, with the same config", flush=True)
        return
    run_seed(ROOT, CONFIG, seed, folder)


def collect(summaries: dict[int, dict]) -> dict:
    """The summaries of all seeds as {"table": ..., "apart": ...}."""
    runs = list(summaries.values())
    policies = [name for name in POLICIES if all(name in run["stages"] for run in runs)]
    table = {
        name: {
            metric: spread([run["stages"][name][metric] for run in runs])
            for metric in METRICS
            if all(metric in run["stages"][name] for run in runs)
        }
        for name in policies
    }
    for name in policies[1:]:
        table[name]["gold_gain"] = spread([gain(run, name) for run in runs])
    table["reward"] = {"heldout_accuracy": spread([run["reward"]["heldout_accuracy"] for run in runs])}
    table["wall_seconds"] = spread([run["wall_seconds"] for run in runs])  # of the last command, whatever it had to do
    return {"table": table, "apart": {name: apart(table, runs, name) for name in policies if name != "sft"}}


def gain(run: dict, name: str) -> float:
    """Gold reward over that of the SFT policy of the same run, from which this policy started: seeds cancel."""
    return run["stages"][name]["gold_reward"] - run["stages"]["sft"]["gold_reward"]


def apart(table: dict, runs: list[dict], name: str) -> dict:
    """Whether the gold reward's interval lies above that of SFT: over seeds, over prompts in how many seeds, and
    whether the interval over seeds of the gain, a paired difference, lies above 0."""
    mine, base = table[name]["gold_reward"]["ci95"], table["sft"]["gold_reward"]["ci95"]
    ends = [(run["stages"][name]["gold_reward_ci95"][0], run["stages"]["sft"]["gold_reward_ci95"][1]) for run in runs]
    return {
        "over_seeds": bool(mine and base and mine[0] > base[1]),
        "seeds_over_prompts": sum(low > high for low, high in ends),
        "gain": bool(table[name]["gold_gain"]["ci95"] and table[name]["gold_gain"]["ci95"][0] > 0),
    }


def results(summaries: dict[int, dict]) -> dict:
    """Everything that goes into results.json: figures, and what they were made with. No path of this machine."""
    return of_seeds(HERE, CONFIG, config_of(0), summaries, **collect(summaries))


def markdown(found: dict) -> str:
    """The results as a Markdown table with the facts below it."""
    table, seeds = found["table"], found["seeds"]
    header = ("policy", "gold reward", "proxy reward", "KL (nats)", "length (tokens)")
    rows = [header, ("---", *["---:"] * len(METRICS))]
    for name in POLICIES:
        if name in table:
            rows.append((name.upper(), *(cell(table[name].get(metric), 2) for metric in METRICS)))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    verdicts = [verdict(name, apart, table[name], len(seeds)) for name, apart in found["apart"].items()]
    facts = [
        f"- Held-out accuracy of the reward model: {cell(table['reward']['heldout_accuracy'], 3)}.",
        f"- Seeds {', '.join(map(str, seeds))}; means over seeds, 95% t-intervals in brackets.",
        f"- {versions(found)}.",
    ]
    return "\n".join([*lines, "", *verdicts, *facts]) + "\n"


def verdict(name: str, apart: dict, row: dict, seeds: int) -> str:
    """'- PPO above SFT ...: yes over seeds; over prompts in 3 of 3 seeds. Gain over its own SFT policy: ...'"""
    above = "above 0" if apart["gain"] else "not shown to be above 0"
    over_seeds, count = "yes" if apart["over_seeds"] else "no", apart["seeds_over_prompts"]
    return (
        f"- {name.upper()} above SFT in gold reward, 95% intervals apart: {over_seeds} over seeds; "
        f"over prompts in {count} of {seeds} seeds. Gain over the SFT policy of the same seed: "
        f"{cell(row['gold_gain'], 2)}, {above}."
    )


def main(argv: list[str] | None = None) -> None:
    args = options(__doc__, ROOT, HERE).parse_args(argv)
    folders = {seed: args.runs / f"quickstart-seed{seed}" for seed in args.seeds}
    for seed, folder in folders.items():
        run_unless_finished(seed, folder)
    read = lambda folder: json.loads((folder / "summary.json").read_text(encoding="utf-8"))  # noqa: E731
    found = results({seed: read(folder) for seed, folder in folders.items()})
    publish(args, BEGIN, found, markdown(found))


if __name__ == "__main__":
    main()
