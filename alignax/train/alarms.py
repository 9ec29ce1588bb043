"""Alarms: what a metric may not do while a run goes on. Each is said as it begins, kept in a file, and may stop it."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignax.log import console, keep_rows, plain_json, read_metrics
from alignax.ops.checks import require


class Alarm(NamedTuple):
    """When a metric calls: beyond a number, or while another metric rises and it does not."""

    metric: str  # as in metrics.jsonl: "objective/kl", "eval/gold_reward"
    above: float = math.inf
    below: float = -math.inf
    while_rises: str = ""  # it is not above where it was `over` values ago, and the metric of this name rose each time
    over: int = 3
    after_percent: float = 0.0  # of the run's steps; before them it is silent
    stop: bool = False  # the run, whose checkpoints are kept


class Alarmed(RuntimeError):
    """An alarm that stops the run."""


class Alarms:
    """The alarms of a run. `look` says what they find in each row of its metrics."""

    def __init__(
        self, alarms: Mapping[str, Alarm], folder: Path, total_steps: int, *, resume_step: int = 0, write: bool = True
    ):
        """`folder`: of the run, whose metrics.jsonl has the rows before `resume_step`, if it goes on."""
        self.alarms, self.total_steps = dict(alarms), total_steps
        self._file, self._write = folder / "alarms.jsonl", write
        names = {name for one in alarms.values() for name in (one.metric, one.while_rises)}
        self._values: dict[str, list[float]] = {name: [] for name in names}
        self._on: set[str] = set()
        if write:
            keep_rows(self._file, resume_step)
        before = folder / "metrics.jsonl"
        for row in read_metrics(before) if resume_step and before.is_file() else ():
            if row["step"] <= resume_step:
                self._begun(row["step"], row)

    def look(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Says which alarms begin with these metrics. Raises Alarmed for one that stops the run."""
        begun = self._begun(step, metrics)
        for name, message in begun:
            if self._write:
                console.print(f"[yellow]alarm {name!r} at step {step}: {message}[/]")
                row = {"step": step, "alarm": name, "message": message}
                with self._file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(plain_json(row)) + "\n")
        for name in sorted(self._on):  # one that began before may have been told since to stop the run
            if self.alarms[name].stop and self.alarms[name].metric in metrics:
                message = self._message(self.alarms[name])
                raise Alarmed(
                    f"step {step}: alarm {name!r}: {message}. Stopped, since config.alarms.{name}.stop is set; the "
                    "checkpoints so far are kept: raise or remove the alarm and give the same command to go on"
                )

    def _begun(self, step: int, metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
        """[(name, what it says)] of the alarms that begin with this row."""
        for name, values in self._values.items():
            if isinstance(metrics.get(name), int | float):
                values.append(float(metrics[name]))
        out = []
        for name, alarm in self.alarms.items():
            if alarm.metric not in metrics or step < alarm.after_percent / 100 * self.total_steps:
                continue
            if message := self._message(alarm):
                out += [(name, message)] if name not in self._on else []
                self._on.add(name)
            else:
                self._on.discard(name)
        return out

    def _message(self, alarm: Alarm) -> str:
        """What is wrong with the metric as it is now; "" if nothing is."""
        values, others = self._values[alarm.metric], self._values[alarm.while_rises]
        if not values:
            return ""
        last = values[-1]
        if last > alarm.above:
            return f"{alarm.metric} is {last:.4g}, above {alarm.above:g}"
        if last < alarm.below:
            return f"{alarm.metric} is {last:.4g}, below {alarm.below:g}"
        if not (alarm.while_rises and rises(others[-alarm.over - 1 :], alarm.over) and len(values) > alarm.over):
            return ""
        before = values[-alarm.over - 1]
        if last > before:
            return ""
        rose = f"{alarm.while_rises} rose {alarm.over} times in a row, to {others[-1]:.4g}"
        return f"{rose}, while {alarm.metric} went from {before:.4g} to {last:.4g}"


def rises(values: Sequence[float], times: int) -> bool:
    """Whether the last values rose so many times, one after the other."""
    return len(values) > times and all(a < b for a, b in zip(values, values[1:]))


def alarm(
    *, metric: str, above: float = math.inf, below: float = -math.inf, while_rises: str = "", over: int = 3,
    after_percent: float = 0.0, stop: bool = False,
) -> Alarm:  # fmt: skip
    """An alarm of a config. Raises ValueError for one that never calls, and for a number that is out of range."""
    require(bool(metric), "metric = '': expected the name of one in metrics.jsonl, such as 'objective/kl'")
    require(
        math.isfinite(above) or math.isfinite(below) or bool(while_rises),
        f"metric = {metric!r}: expected above, below, or while_rises: without one it never calls",
    )
    require(above >= below, f"above = {above}, below = {below}: expected above >= below")
    require(over >= 1, f"over = {over}: expected 1 value or more")
    require(0 <= after_percent <= 100, f"after_percent = {after_percent}: expected 0 to 100, of the run's steps")
    return Alarm(metric, above, below, while_rises, over, after_percent, stop)
