"""The end-of-run table: gold and proxy reward, KL and win rate with 95% intervals, for the terminal and as Markdown."""

import math
from pathlib import Path
from typing import Any

import rich.box
import rich.table
from rich.text import Text

from alignax.report.folder import Run, Stage, is_number, label, read_run

# header, key in eval.json, decimals
COLUMNS = (
    ("gold reward", "gold_reward", 2),
    ("proxy reward", "proxy_reward", 2),
    ("KL (nats)", "kl", 2),
    ("win rate", "win_rate", 2),
    ("length", "length", 1),
)
FINAL = {  # what a stage's last values are, when nothing was evaluated: the first three that are there
    "sft": ("eval/loss", "loss", "mean_token_accuracy"),
    "reward": ("eval/accuracy", "eval/loss", "accuracy", "loss", "margin"),
    "online": ("eval/gold_reward", "eval/proxy_reward", "eval/kl", "objective/scores", "objective/kl"),
    "offline": ("eval/gold_reward", "eval/kl", "rewards/accuracies", "rewards/margins", "loss"),
    "distill": ("eval/gold_reward", "eval/loss", "eval/agreement", "loss"),
}


def table(workdir: str | Path) -> rich.table.Table:
    """The short table printed at the end of a run. Raises ReportError if the folder holds nothing to report."""
    run = read_run(workdir)
    header, rows = cells(run)
    caption = Text(reward_model_line(run)) if run.reward_model else None
    out = rich.table.Table(title=Text(title(run)), caption=caption, box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, name in enumerate(header):
        out.add_column(name, justify="left" if i == 0 or not run.policies else "right")
    for row in rows:
        out.add_row(*(Text(cell.replace(" [", "\n[")) for cell in row))  # Text: brackets are no markup here
    return out


def markdown(workdir: str | Path) -> str:
    """The same table as GitHub Markdown, with the reward model's line below it."""
    run = read_run(workdir)
    header, rows = cells(run)
    align = ["---", *("---:" if run.policies else "---" for _ in header[1:])]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, align, *rows)]
    return "\n".join([*lines, "", reward_model_line(run)]).rstrip() + "\n"


def title(run: Run) -> str:
    name = run.path.resolve().name
    return f"{name}: 95% intervals in brackets" if run.policies else f"{name}: last values, nothing was evaluated"


def cells(run: Run) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text: one row per policy, or one per stage if no policy was evaluated."""
    if not run.policies:
        return ["stage", "state", "step", "last values"], [_stage_row(stage) for stage in run.stages]
    rows = [[label(name), *(value(policy, *column[1:]) for column in COLUMNS)] for name, policy in run.policies.items()]
    return ["policy", *(column[0] for column in COLUMNS)], rows


def value(record: dict[str, Any], key: str, decimals: int) -> str:
    """'1.23 [1.10, 1.36]': a number with its interval if `<key>_ci95` is there; a dash if the number is not."""
    number = record.get(key)
    if not is_number(number):
        return "-"
    interval = record.get(f"{key}_ci95")
    if not interval or not all(is_number(end) for end in interval):
        return f"{number:.{decimals}f}"
    low, high = interval
    return f"{number:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def reward_model_line(run: Run) -> str:
    """'reward model: held-out accuracy 0.742 [0.721, 0.763], ...' or '' if none was evaluated."""
    names = {
        "held-out accuracy": "heldout_accuracy",
        "agreement with gold": "gold_accuracy",
        "best possible": "bayes_accuracy",
        "calibration error": "ece",
        "NLL": "nll",
    }
    parts = [
        f"{name} {value(run.reward_model, key, 3)}"
        for name, key in names.items()
        if run.reward_model.get(key) is not None
    ]
    return f"reward model: {', '.join(parts)}" if parts else ""


def final_values(stage: Stage) -> dict[str, float]:
    """The stage's last values: the manifest's if it names them, else the last logged ones; at most three."""
    merged: dict[str, Any] = {}
    for row in stage.metrics:
        prefix = "eval/" if row.get("split") == "eval" else ""
        merged |= {key if key.startswith("eval/") else prefix + key: item for key, item in row.items()}
    merged |= (stage.manifest or {}).get("metrics") or {}
    known = FINAL.get(stage.kind) or [key for key in merged if key not in ("step", "eval/step")]
    return {key: float(merged[key]) for key in [key for key in known if is_number(merged.get(key))][:3]}


def _stage_row(stage: Stage) -> list[str]:
    last = final_values(stage).items()
    shown = ", ".join(f"{key} {number:.4g}" for key, number in last) or "-"
    return [stage.name, state(stage), "-" if stage.step is None else str(stage.step), shown]


def state(stage: Stage) -> str:
    return "finished" if stage.manifest else "unfinished"


def duration(seconds: float | None) -> str:
    """'48 s', '3 min 05 s', '2 h 04 min'; a dash if unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
