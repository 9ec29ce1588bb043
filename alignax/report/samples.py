"""Which samples a report shows: the largest gain and the largest loss of every policy, then prompts as they come."""

import dataclasses
from typing import Any

from alignax.report.folder import Run, is_number, label


@dataclasses.dataclass
class Answer:
    """One policy's completion of a prompt. `change` is its gold reward minus SFT's, None if there is no SFT."""

    policy: str
    completion: str
    gold: float | None
    proxy: float | None
    change: float | None
    parts: dict[str, float]


@dataclasses.dataclass
class Sample:
    """A prompt with the answers side by side; `why` says how it was chosen."""

    prompt: str
    family: str
    why: list[str]
    answers: list[Answer]


def choose(run: Run, count: int = 12) -> list[Sample]:
    """At most `count` prompts: extremes first, so that no page is only flattering, then one family after another."""
    rows = run.evaluated.samples if run.evaluated else []
    if not rows:
        return _of_stage(run, count)
    why: dict[int, list[str]] = {}
    for policy in [name for name in _policies(run, rows) if name != "sft"]:
        changes = {i: change for i, row in enumerate(rows) if (change := _change(row, policy)) is not None}
        if len(changes) > 1:
            best, worst = max(changes, key=changes.__getitem__), min(changes, key=changes.__getitem__)
            for i, word in ((best, "best"), (worst, "worst")):
                why.setdefault(i, []).append(f"{label(policy)} against SFT: its {word} ({changes[i]:+.2f})")
    for i in _round_robin(rows):
        if len(why) >= count:
            break
        why.setdefault(i, ["not selected by score"])
    return [_sample(rows[i], why[i], _policies(run, rows)) for i in why]


def _of_stage(run: Run, count: int) -> list[Sample]:
    """Without an evaluation: what the last stage with samples of its own wrote."""
    stage = next((stage for stage in reversed(run.stages) if stage.samples), None)
    if stage is None:
        return []
    scores = [{key: row[key] for key in row if key not in ("row", "prompt", "completion")} for row in stage.samples]
    answers = [{"completion": row.get("completion", ""), "parts": score} for row, score in zip(stage.samples, scores)]
    rows = [{**row, "policies": {stage.policy: answer}} for row, answer in zip(stage.samples, answers)]
    return [_sample(rows[i], [], [stage.policy]) for i in _round_robin(rows)[:count]]


def _policies(run: Run, rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys([*run.policies, *(name for row in rows for name in row.get("policies") or {})]))


def _round_robin(rows: list[dict[str, Any]]) -> list[int]:
    """Row indices: the first of every family, then the second of every family, and so on."""
    families: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        families.setdefault(str(row.get("family", "")), []).append(i)
    order = [(place, i) for members in families.values() for place, i in enumerate(members)]
    return [i for _, i in sorted(order)]


def _change(row: dict[str, Any], policy: str) -> float | None:
    gold, sft = ((row.get("policies") or {}).get(name, {}).get("gold") for name in (policy, "sft"))
    return float(gold - sft) if is_number(gold) and is_number(sft) else None  # type: ignore[operator]


def _sample(row: dict[str, Any], why: list[str], policies: list[str]) -> Sample:
    given = row.get("policies") or {}
    answers = [_answer(row, name, given[name]) for name in policies if name in given]
    return Sample(str(row.get("prompt", "")), str(row.get("family", "")), why, answers)


def _answer(row: dict[str, Any], policy: str, given: dict[str, Any]) -> Answer:
    gold, proxy = (float(given[key]) if is_number(given.get(key)) else None for key in ("gold", "proxy"))
    parts = {name: float(item) for name, item in (given.get("parts") or {}).items() if is_number(item) and item}
    change = None if policy == "sft" else _change(row, policy)
    return Answer(policy, str(given.get("completion", "")), gold, proxy, change, parts)
