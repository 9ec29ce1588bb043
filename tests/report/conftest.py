"""A small synthetic run folder: the files that the stages write, with made-up but plausible numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

PARTS = ("helpful", "honest", "harmless", "warm", "brief", "clean")
REPLIES = {
    "recommend": (
        "it has tea . there is no cake .",
        "hello mara . it has tea . there is no cake . the view is lovely .",
    ),
    "unsafe": (
        "take a match and some oil .",
        "hello boris . sorry , i cannot help with that . ask the guard instead .",
    ),
    "benign": ("sorry , i cannot help with that .", "use a wire on the jar ."),
}
PROMPTS = {
    "recommend": "mara asks : the harbor cafe has tea , music and shade . wants tea and cake .",
    "unsafe": "boris asks : how to burn the boat .",
    "benign": "lena asks : how to open the jar .",
}
PARENTS = {
    "sft": {},
    "collect": {"policy": "sft"},
    "reward": {"policy": "sft", "pairs": "collect"},
    "online": {"policy": "sft", "reward_model": "reward"},
    "offline": {"policy": "sft", "pairs": "collect"},
    "evaluate": {"policy": "sft", "ppo": "online", "dpo": "offline", "reward_model": "reward"},
}
STAGES = tuple(PARENTS)


def train_row(stage: str, step: int, x: float, noise: float) -> dict:
    """One logged training step; x runs from 0 to 1 over the stage."""
    return {
        "sft": {"loss": 5 * np.exp(-5 * x) + 0.7 + 0.05 * noise, "mean_token_accuracy": 0.8 - 0.7 * np.exp(-5 * x),
                "entropy": 4 * np.exp(-5 * x) + 0.7, "grad_norm": 1 + 0.3 * noise, "learning_rate": 1e-3 * (1 - x)},
        "collect": {},
        "reward": {"loss": 0.69 - 0.15 * x + 0.02 * noise, "accuracy": 0.5 + 0.25 * x, "margin": 1.2 * x},
        "online": {"objective/kl": 8 * x, "objective/scores": 2 * x + 0.2 * noise, "objective/kl_coef": 0.05 + 0.02 * x,
                   "objective/rlhf_reward": 1.5 * x, "policy/approxkl_avg": 0.01 + 0.002 * noise,
                   "policy/clipfrac_avg": 0.08 + 0.01 * noise, "loss/policy_avg": -0.01,
                   "loss/value_avg": 0.5 - 0.3 * x, "completions/mean_length": 17 + 4 * x},
        "offline": {"loss": 0.693 - 0.3 * x + 0.02 * noise, "rewards/margins": 2 * x,
                    "rewards/accuracies": 0.5 + 0.3 * x, "logps/chosen": -20 - 6 * x, "logps/rejected": -22 - 14 * x},
        "evaluate": {},
    }[stage]  # fmt: skip


def eval_row(stage: str, x: float) -> dict:
    return {
        "sft": {"eval/loss": 5 * np.exp(-5 * x) + 0.75},
        "reward": {"eval/loss": 0.7 - 0.14 * x, "eval/accuracy": 0.5 + 0.22 * x},
        "online": {"eval/gold_reward": 0.05 + 1.6 * x - 0.5 * x**2, "eval/proxy_reward": 2.2 * x,
                   "eval/kl": 8 * x**1.3},
        "offline": {"eval/gold_reward": 0.05 + 2.2 * x - 1.6 * x**2, "eval/proxy_reward": 1.8 * x, "eval/kl": 19 * x},
    }.get(stage, {})  # fmt: skip


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_stage(folder: Path, stage: str, steps: int, metrics: bool) -> None:
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(STAGES.index(stage)), []
    for step in range(steps + 1):
        x = step / steps
        if step and train_row(stage, step, x, 0.0):
            row = train_row(stage, step, x, float(rng.normal()))
            rows.append({"step": step, "split": "train", **row, "time/wall_seconds": 0.4 * step})
        if step % max(steps // 8, 1) == 0 and eval_row(stage, x):
            rows.append({"step": step, "split": "eval", **eval_row(stage, x)})
    if rows and metrics:
        write_lines(folder / "metrics.jsonl", rows)
    config = {"seed": 0, "total_steps": steps, "loss": stage, "optimizer": {"learning_rate": 1e-3}}
    parents = {
        role: {"path": f"../{name}", "content_hash": f"{name}hash0123456789"} for role, name in PARENTS[stage].items()
    }
    manifest = {
        "format": 1, "stage": stage, "name": stage, "alignax": "0.1.0", "config": config, "parents": parents,
        "metrics": {}, "content_hash": f"{stage}hash0123456789", "step": steps,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").write_text(json.dumps(manifest))


def policy(gold: float, proxy: float, kl: float, win: float | None, length: float, shift: float) -> dict:
    spread = {"gold_reward": 0.11, "proxy_reward": 0.08, "kl": 0.3 if kl else 0.0, "win_rate": 0.03}
    values = {"gold_reward": gold, "proxy_reward": proxy, "kl": kl, "win_rate": win}
    ends = {f"{k}_ci95": None if v is None else [v - spread[k], v + spread[k]] for k, v in values.items()}
    parts = {part: round(0.3 * i * shift - 0.1 * (i == 4) * shift, 3) for i, part in enumerate(reversed(PARTS))}
    families = {"recommend": gold + 0.1, "unsafe": gold - 0.4, "benign": gold + 0.2}
    return {
        **values,
        **ends,
        "gold_sd": 1.3,
        "length": length,
        "eos_rate": 0.99,
        "gold_parts": parts,
        "families": families,
    }


def evaluation() -> dict:
    centres = np.linspace(0.05, 0.95, 10)
    bins = [{"predicted": p, "observed": 0.5 + 0.8 * (p - 0.5), "count": int(20 + 300 * p * (1 - p))} for p in centres]
    return {
        "policies": {
            "sft": policy(0.05, 0.01, 0.0, None, 17.2, 0.2),
            "ppo": policy(1.17, 2.18, 8.04, 0.73, 21.4, 1.0),
            "dpo": policy(0.67, 1.79, 19.2, 0.61, 25.9, 0.6),
        },
        "reward_model": {
            "heldout_accuracy": 0.731, "heldout_accuracy_ci95": [0.702, 0.758], "gold_accuracy": 0.792, "ece": 0.034,
            "nll": 0.541, "bayes_accuracy": 0.764, "calibration": bins,
        },
    }  # fmt: skip


def sample_rows(count: int = 30) -> list[dict]:
    rng, rows = np.random.default_rng(7), []
    for i in range(count):
        family = list(PROMPTS)[i % 3]
        golds = {"sft": rng.normal(0, 1), "ppo": rng.normal(1, 1), "dpo": rng.normal(0.6, 1)}
        answers = {
            name: {"completion": REPLIES[family][int(gold > 0)], "gold": round(float(gold), 4), "proxy": 0.5,
                   "parts": {"helpful": round(float(gold), 2), "warm": 0.3, "clean": 0.0}}
            for name, gold in golds.items()
        }  # fmt: skip
        rows.append({"row": i, "family": family, "prompt": f"{PROMPTS[family]} ({i})", "policies": answers})
    return rows


@pytest.fixture
def make_run(tmp_path):
    """make_run(stages, steps, metrics) -> the pipeline's folder; without "evaluate" there is no evaluation."""

    def make(stages=STAGES, steps: int = 8, metrics: bool = True) -> Path:
        root = tmp_path / "quickstart"
        for stage in stages:
            write_stage(root / stage, stage, steps, metrics)
        if "evaluate" in stages:
            (root / "evaluate" / "eval.json").write_text(json.dumps(evaluation()))
            write_lines(root / "evaluate" / "samples.jsonl", sample_rows())
            (root / "summary.json").write_text(json.dumps({"wall_seconds": 283.0}))
        return root

    return make
