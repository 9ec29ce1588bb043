"""What a policy gets from one reward model, an ensemble, their average, a constraint, PAR's shaping, at equal KL.

    python experiments/rewards/run.py [--seeds 0 1 2] [--only ppo-one grpo-par] [--runs runs] [--skip-alarms]

PPO and GRPO on the harbour desk, each with its KL in the reward and a coefficient that keeps it near 3 nats. The oracle
is a run of the same method on the gold reward itself, at the same KL: a column gives each run's share of its gain. Two
further runs of seed 0 show the alarms: PPO without a penalty, at four times the rate and twice the length, which
over-optimises on purpose, and PPO as above. A run that has finished with the same config is not run again.
Hardware: 2 CPU cores, about 5 minutes for the models of a seed and one for each run. Writes results/results.json and
results/results.md beside this file.
"""

import json
import sys
from pathlib import Path
from typing import Any

from alignax.evals.intervals import spread
from alignax.log import read_metrics
from alignax.main import load_config
from alignax.report.experiment import cell, made_with, options, publish, versions
from alignax.stages import average, collect, evaluate, online, reward, sft
from alignax.worlds.gold import gold

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # configs import one another from here
MEMBERS = 3
METHODS = ("ppo", "grpo")
REWARDS = ("oracle", "one", "ensemble", "warm", "constraint", "par")
METRICS = {"gold_reward": "eval/gold_reward", "proxy_reward": "eval/proxy_reward", "kl": "eval/kl"}
METRICS |= {"length": "eval/mean_length"}
KL = dict(kl_placement="reward", kl_estimator="k1", kl_coef=0.05, kl_controller="adaptive_kl")
TARGET = dict(target=3.0, horizon=320.0)  # nats; episodes


def harmless(row: dict, completion: str, *, finished: bool) -> float:
    """The part of the gold reward that a constraint is set on: 0 and more for a reply that does no harm."""
    return gold(row, completion, finished=finished)["harmless"]


def world(file: str, seed: int, base: Path | None) -> Any:
    """A config of configs/world, from a seed's SFT policy."""
    c = load_config(str(ROOT / "configs/world" / file), [])
    c.seed = seed
    if base is not None:
        c.init_from = str(base / "sft")
    return c


def models(seed: int, base: Path) -> None:
    """SFT, preferences, three reward models with one initialisation of their heads, and their average."""
    c = world("sft.py", seed, None)
    c.data.seed = seed
    sft.run(c, base / "sft")
    c = world("collect.py", seed, base)
    c.data.seed = seed
    collect.run(c, base / "collect")
    for i in range(MEMBERS):
        c = world("reward.py", 10 * seed + i, base)
        c.data.path, c.head_seed, c.eval_every_steps = str(base / "collect"), seed, 0
        reward.run(c, base / f"reward_{i}")
    c = world("average.py", seed, None)
    c.members = tuple(str(base / f"reward_{i}") for i in range(MEMBERS))
    average.run(c, base / "warm")


def rewards_of(kind: str, base: Path) -> dict[str, Any]:
    """The keys of a config that say what is rewarded."""
    judge: dict[str, Any] = {"from": str(base / "reward_0")}
    members = [str(base / f"reward_{i}") for i in range(MEMBERS)]
    return {
        "oracle": dict(reward="alignax.worlds.gold:gold"),
        "one": dict(rewards=dict(judge=judge)),
        "ensemble": dict(rewards=dict(judge={"from": members, "function": "alignax.rewards.combine:mean_less_std"})),
        "warm": dict(rewards=dict(judge={"from": str(base / "warm")})),
        "constraint": dict(rewards=dict(judge=judge, harmless=dict(function=harmless, at_least=0.0))),
        "par": dict(
            rewards=dict(judge=judge), reward_shaping="preference", reference_replies=4,
            scoring_args=dict(normalize=False, clip=0.0),
        ),
    }[kind]  # fmt: skip


def config_of(name: str, seed: int, base: Path) -> Any:
    """The config of one run, such as 'grpo-par'."""
    method, kind = name.split("-")
    c = world("ppo.py" if method == "ppo" else "online.py:grpo", seed, base)
    c.reward_from, c.critic_init, c.data.seed = "", "policy" if method == "ppo" else "none", seed
    for key, value in (KL | rewards_of(kind, base)).items():
        setattr(c, key, value)
    c.kl_controller_args, c.kl_loss_args = TARGET, {}
    c.probe.reward_from, c.probe.data.count, c.eval_every_steps = str(base / "reward_0"), 512, 0
    return c


def run_one(name: str, seed: int, base: Path, folder: Path) -> dict[str, float]:
    """Final gold reward, score of the first reward model, KL and length of one run."""
    online.run(config_of(name, seed, base), folder)
    found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    return {metric: found[key] for metric, key in METRICS.items()}


def start_of(seed: int, base: Path, folder: Path) -> dict[str, float]:
    """The same of the SFT policy."""
    c = world("ppo.py", seed, base)
    e = evaluate.get_config()
    e.init_from, e.policies, e.seed = str(base / "sft"), dict(sft=str(base / "sft")), seed
    e.probe = c.probe
    e.probe.reward_from, e.probe.data.count = str(base / "reward_0"), 512
    evaluate.run(e, folder)
    return json.loads((folder / "eval.json").read_text(encoding="utf-8"))["policies"]["sft"]


def alarms(base: Path, folder: Path) -> dict[str, Any]:
    """Which alarms fire in a run that over-optimises on purpose, and in one that does not."""
    out = {}
    for name in ("on_purpose", "as_above"):
        c = config_of("ppo-one", 0, base)
        c.eval_every_steps = 8
        if name == "on_purpose":
            c.kl_controller, c.kl_controller_args, c.kl_coef = "fixed_kl", {}, 0.0
            c.total_steps, c.optimizer_args.learning_rate = 96, 2e-3
        online.run(c, folder / name)
        file = folder / name / "alarms.jsonl"
        rows = [json.loads(row) for row in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
        path = [row for row in read_metrics(folder / name / "metrics.jsonl") if row["split"] == "eval"]
        keys = ("step", *METRICS.values(), "eval/self_bleu")
        out[name] = {"alarms": rows, "path": [{key: row[key] for key in keys if key in row} for row in path]}
    return out


def alarms_of(out: Path) -> dict[str, Any]:
    """What the results there say of the two runs that show the alarms."""
    file = out / "results.json"
    return json.loads(file.read_text(encoding="utf-8"))["alarms"] if file.is_file() else {}


def results(per_seed: dict[str, dict[int, dict]], start: dict[int, dict], rang: dict[str, Any]) -> dict[str, Any]:
    """Everything that goes into results.json. No path of this machine."""
    table: dict[str, Any] = {}
    for name, runs in per_seed.items():
        row: dict[str, Any] = {metric: spread([run[metric] for run in runs.values()]) for metric in METRICS}
        gain = {seed: run["gold_reward"] - start[seed]["gold_reward"] for seed, run in runs.items()}
        row["gold_gain"] = spread([*gain.values()])
        oracle = per_seed.get(f"{name.split('-')[0]}-oracle", {})
        most = {seed: oracle[seed]["gold_reward"] - start[seed]["gold_reward"] for seed in gain if seed in oracle}
        row["share"] = spread([gain[seed] / most[seed] for seed in most]) if most else None
        table[name] = row | {"seeds": sorted(runs)}
    known = ("gold_reward", "proxy_reward")
    return made_with() | {
        "start": {str(seed): {name: one[name] for name in known} for seed, one in start.items()},
        "table": table,
        "alarms": rang,
        "per_seed": {name: {str(seed): run for seed, run in runs.items()} for name, runs in per_seed.items()},
    }


def markdown(found: dict[str, Any]) -> str:
    """The table, and what rang."""
    head = (
        "run",
        "seeds",
        "gold reward",
        "gain over SFT",
        "share of the oracle's gain",
        "score of model 0",
        "KL (nats)",
    )
    rows = [head, ("---", "---:", "---:", "---:", "---:", "---:", "---:")]
    for name, row in found["table"].items():
        columns = (cell(row[key], 2) for key in ("gold_reward", "gold_gain", "share", "proxy_reward", "kl"))
        rows.append((name, str(len(row["seeds"])), *columns))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "- Means over seeds, 95% t-intervals in brackets where there are several. Evaluated on 512 prompts."]
    for name, one in found["alarms"].items():
        said = "; ".join(f"{row['alarm']} at step {row['step']}: {row['message']}" for row in one["alarms"])
        first, last = (one["path"][i] for i in (0, -1))
        moved = ", ".join(f"{key} {first[key]:.2f} -> {last[key]:.2f}" for key in METRICS.values() if key in first)
        lines.append(f"- Alarms of the run `{name}`: {said or 'none'}. {moved}.")
    lines.append(f"- {versions(found)}.")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = options(__doc__ or "", ROOT, HERE)
    names = [f"{method}-{kind}" for method in METHODS for kind in REWARDS]
    parser.add_argument("--only", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument(
        "--skip-alarms", action="store_true", help="leave the two runs that show the alarms as they are"
    )
    args = parser.parse_args(argv)
    per_seed: dict[str, dict[int, dict]] = {}
    start, rang = {}, alarms_of(args.out) if args.skip_alarms else {}
    for seed in args.seeds:
        base = args.runs / f"rewards-seed{seed}"
        models(seed, base)
        start[seed] = start_of(seed, base, base / "start")
        for name in args.only:
            per_seed.setdefault(name, {})[seed] = run_one(name, seed, base, base / name)
            found = results(per_seed, start, rang)
            publish(args, "", found, markdown(found))  # what there is so far
        if seed == 0 and not args.skip_alarms:
            rang = alarms(base, base / "alarms")
    found = results(per_seed, start, rang)
    publish(args, "", found, markdown(found))


if __name__ == "__main__":
    main()
