"""Twenty questions between two policies: games won and questions asked before GRPO and after, over seeds.

    python experiments/questions/run.py [--seeds 0 1 2] [--runs runs]

Hardware: 2 CPU cores, a few minutes per seed. Writes results/results.json and results/results.md beside this file.
"""

import json
import random
import statistics
from pathlib import Path

from alignax.config import plain
from alignax.evals.intervals import spread
from alignax.main import load_config
from alignax.report.experiment import cell, of_seeds, options, publish, run_seed, versions
from alignax.worlds import things

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONFIG = "configs/world/questions.py"
POLICIES = ("sft", "grpo")
METRICS = {"games won": "questions/won", "reward": "gold_reward", "questions": "env/turns", "KL (nats)": "kl"}


def won(facts: tuple[str, ...], guesses: float, rng: random.Random) -> bool:
    """Whether a player wins a game who asks for these facts in a random order, as the demonstrations do for all."""
    row = things.game(rng.choice(list(things.THINGS)), guesses, rng, facts)
    return row["completion"][-1]["content"].split()[-2] == row["answer"]


def halved(meant: str) -> bool:
    """Whether a player finds it who asks for the fact that halves what is left best, and guesses in the last turn."""
    left = list(things.THINGS)
    for _ in range(things.TURNS - 1):
        fact = min(things.TRUE, key=lambda fact: abs(2 * sum(things.holds(name, fact) for name in left) - len(left)))
        left = [name for name in left if things.holds(name, fact) == things.holds(meant, fact)]
    return left == [meant]


def players(games: int = 5_000) -> dict[str, float]:
    """The share of games that players win who know the facts and have a plan, or none."""
    share = lambda facts: statistics.fmean(won(facts, 0.1, rng) for rng in [random.Random(0)] for _ in range(games))  # noqa: E731
    return {
        "random facts, as demonstrated": share(things.FACTS),
        "random facts that are true of something": share(things.TRUE),
        "the fact that halves what is left": statistics.fmean(map(halved, things.THINGS)),
    }


def results(runs: dict[int, dict]) -> dict:
    """Everything that goes into results.json: {policy: {metric: its mean and interval over seeds}}."""
    table = {
        name: {title: spread([run[name][key] for run in runs.values()]) for title, key in METRICS.items()}
        for name in POLICIES
    }
    effective = plain(load_config(str(ROOT / CONFIG), []))
    return of_seeds(HERE, CONFIG, effective, runs, table=table, players=players())


def markdown(found: dict) -> str:
    """The results as a Markdown table with the facts below it."""
    rows = [("policy", *METRICS), ("---", *["---:"] * len(METRICS))]
    rows += [(name, *(cell(row[title], 2) for title in METRICS)) for name, row in found["table"].items()]
    facts = [
        f"- Seeds {', '.join(map(str, found['seeds']))}; means over seeds, 95% t-intervals in brackets where there are "
        "several; 512 games each, 16 of each thing.",
        "- Of games without a model are won, by who guesses well and asks for "
        + "; ".join(f"{name}: {share:.0%}" for name, share in found["players"].items())
        + ".",
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
