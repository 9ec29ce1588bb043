"""Every objective at its default settings on the harbour desk: gold reward and KL over seeds, written as a table.

    python experiments/objectives/run.py [--seeds 0 1 2] [--only dpo ipo kto] [--runs runs] [--write-readme]

Starts from the policies, preferences and reward models of `experiments/quickstart/run.py`: run that first. A run that
has finished with the same config is not run again, and `--only` leaves the other rows of the results as they are.
Hardware: 2 CPU cores, about half a minute per offline run and one minute per online run. Writes results/results.json
and results/results.md beside this file; --write-readme puts the table into docs/objectives.md as well.
"""

import json
import math
import sys
from pathlib import Path

from alignax import catalogue
from alignax.evals.intervals import spread
from alignax.main import load_config
from alignax.report.experiment import cell, made_with, options, publish, versions
from alignax.stages import collect, distill, offline, online, reward

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # configs import one another from here
from configs.world.online import RECIPES as ONLINE  # noqa: E402

COMMAND = "python experiments/objectives/run.py --write-readme"
BEGIN = "<!-- results:objectives -->"
METRICS = {"gold_reward": "eval/gold_reward", "kl": "eval/kl", "length": "eval/mean_length"}
PROXY = "eval/proxy_reward"  # where a run measures it: the score of the reward model that the seed's pairs made
NOT_FROM_FILES = ("xpo",)  # learns from samples of policy and reference made side by side
VARIANTS = ("tr_dpo",)  # a config of its own, offline
# Losses of reward models, and the config of each; RLOO then follows the model. Not here: bradley_terry, which all the
# online rows follow; ordinal and process, whose data say nothing of most replies on the desk.
REWARDS = {"bradley_terry_margin": "pairs", "bradley_terry_noisy": "pairs", "davidson": "ties", "rao_kupper": "ties"}
REWARDS |= {"plackett_luce": "rankings", "ranked_pairs": "rankings", "regression": "ratings"}
TIE_BELOW = 0.25  # gold reward: for the two models of ties, whose annotator calls closer pairs even
DISTILLED = ("gkd", "forward_kl", "reverse_kl")  # from the PPO policy of the same seed


def names() -> list[str]:
    """What this experiment runs: losses on preferences, online recipes, reward models, distillation."""
    described = [catalogue.objective(name) for name in catalogue.names()]
    losses = [o.name for o in described if o.record in ("Pair", "Unpaired") and o.name not in NOT_FROM_FILES]
    return [*losses, *VARIANTS, *ONLINE, *REWARDS, *DISTILLED]


def kind_of(name: str) -> str:
    """How an objective learns."""
    if name in REWARDS:
        return "reward model, then rloo"
    return "online" if name in ONLINE else "distillation" if name in DISTILLED else "offline"


def config_of(name: str, base: Path, seed: int):
    """The config of one run: the world's DPO config with another loss, or a recipe, from the parents of a seed."""
    kind = kind_of(name)
    files = {"online": f"online.py:{name}", "distillation": f"distill.py:{name}", "offline": "dpo.py"}
    c = world(f"{name}.py" if name in VARIANTS else files.get(kind, "online.py:rloo"), base, seed)
    c.eval_every_steps, c.probe.data.count = 0, 512
    if name in REWARDS:
        c.data.seed = seed  # and reward_from: see run_one
    elif kind == "online":
        group, key = (c.rewards.judge, "from") if c.rewards else (c, "reward_from")
        group[key], c.data.seed = str(base / "reward"), seed
    elif kind == "distillation":
        c.teacher_from, c.data.seed = str(base / "ppo"), seed
    else:
        c.data.path, c.probe.reward_from = str(base / "collect"), str(base / "reward")
        if name not in VARIANTS:
            c.loss, c.loss_args = name, {}
    return c


def world(file: str, base: Path, seed: int):
    """A config of configs/world that starts from a seed's SFT policy."""
    c = load_config(str(ROOT / "configs/world" / file), [])
    c.seed, c.init_from = seed, str(base / "sft")
    return c


def reward_model(name: str, base: Path, folder: Path, seed: int) -> Path:
    """Trains a reward model beside `folder`, on the seed's pairs or on judgements collected for it."""
    kind = REWARDS[name]
    c = world("reward.py" if kind in ("pairs", "ties") else f"{kind}.py", base, seed)
    c.loss, c.loss_args, c.eval_every_steps, c.data.path = name, {}, 0, str(base / "collect")
    if kind != "pairs":
        judged = world("collect.py" if kind == "ties" else f"collect.py:{kind}", base, seed)
        judged.data.seed = seed
        if kind == "ties":
            judged.annotator_args.tie_below = TIE_BELOW
        c.data.path = str(collect.run(judged, folder.with_name(kind)))
    return reward.run(c, folder.with_name(f"{name}-reward"))


def run_one(name: str, base: Path, folder: Path, seed: int) -> dict[str, float]:
    """Final gold reward, KL and length of one run."""
    c = config_of(name, base, seed)
    if name in REWARDS:
        c.reward_from = str(reward_model(name, base, folder, seed))
    stage = {"offline": offline, "distillation": distill}.get(kind_of(name), online)
    stage.run(c, folder)
    found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    proxy = {"proxy_reward": found[PROXY]} if PROXY in found and name not in REWARDS else {}
    return {metric: found[key] for metric, key in METRICS.items()} | proxy


def results(per_seed: dict[str, dict[int, dict]], sft: dict[int, dict]) -> dict:
    """Everything that goes into results.json. No path of this machine."""
    table = {}
    for name, runs in per_seed.items():
        table[name] = {metric: spread([run[metric] for run in runs.values()]) for metric in METRICS}
        for metric in ("gold", "proxy"):
            gains = [
                run.get(f"{metric}_reward", math.nan) - sft[seed][f"{metric}_reward"] for seed, run in runs.items()
            ]
            table[name][f"{metric}_gain"] = spread(gains) if all(map(math.isfinite, gains)) else None
    return {
        "command": COMMAND,
        "seeds": sorted(sft),
        **made_with(),
        "sft": {str(seed): value for seed, value in sft.items()},
        "table": table,
        "per_seed": {name: {str(seed): run for seed, run in runs.items()} for name, runs in per_seed.items()},
    }


def markdown(found: dict) -> str:
    """The table, the best gold reward first."""
    rows = [("objective", "kind", "gold reward", "gain over SFT", "gain in proxy", "KL (nats)", "length (tokens)")]
    rows.append(("---", "---", "---:", "---:", "---:", "---:", "---:"))
    order = sorted(found["table"].items(), key=lambda item: -item[1]["gold_reward"]["mean"])
    for name, row in order:
        columns = (cell(row[metric], 2) for metric in ("gold_reward", "gold_gain", "proxy_gain", "kl"))
        rows.append((name, kind_of(name), *columns, cell(row["length"], 1)))
    seeds = ", ".join(map(str, found["seeds"]))
    notes = [
        f"- Seeds {seeds}: means, 95% t-intervals in brackets where there are several; gains are over the SFT "
        "policy of the same seed, that in proxy by the score of the seed's Bradley-Terry reward model.",
        "- Default settings of each loss at one learning rate and one number of updates: this compares defaults, not "
        "tuned methods.",
        f"- {versions(found)}, {found['cpu_count']} CPU cores.",
    ]
    if set(found["table"]) & set(REWARDS):
        notes.append(
            "- Reward models learn from as many samples as the pairs hold, then RLOO follows each; "
            "bradley_terry_margin reads the annotator's exact margins, which tell more than its labels do."
        )
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + ["", *notes]) + "\n"


def earlier(file: Path, seeds: list[int]) -> dict[str, dict[int, dict]]:
    """The runs of a results file with the same seeds: `--only` then replaces its rows and leaves the others."""
    if not file.is_file():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["seeds"] != sorted(seeds):
        return {}
    return {name: {int(seed): run for seed, run in runs.items()} for name, runs in found["per_seed"].items()}


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__, ROOT, HERE)
    parser.set_defaults(readme=ROOT / "docs/objectives.md")  # the page of this table
    parser.add_argument("--only", nargs="+", default=names(), choices=names(), metavar="NAME")
    args = parser.parse_args(argv)
    sft: dict[int, dict] = {}
    for seed in args.seeds:
        summary = args.runs / f"quickstart-seed{seed}" / "summary.json"
        if not summary.is_file():
            sys.exit(f"{summary} is not there: run experiments/quickstart/run.py --seeds {seed} first")
        measured = json.loads(summary.read_text(encoding="utf-8"))["stages"]["sft"]
        sft[seed] = {name: measured[name] for name in ("gold_reward", "proxy_reward")}
    per_seed: dict[str, dict[int, dict]] = {}
    for seed in args.seeds:
        for name in args.only:
            base, folder = args.runs / f"quickstart-seed{seed}", args.runs / f"objectives-seed{seed}" / name
            per_seed.setdefault(name, {})[seed] = run_one(name, base, folder, seed)
    found = results(earlier(args.out / "results.json", args.seeds) | per_seed, sft)
    publish(args, BEGIN, found, markdown(found))


if __name__ == "__main__":
    main()
