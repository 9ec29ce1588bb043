"""Scalars of a run: JSON lines that survive a kill, TensorBoard on request, and a progress bar with live metrics.

JSON has no NaN: a float that is not finite is written as the string "NaN", "Infinity" or "-Infinity", and
`read_metrics` gives the float back.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)  # what people are told beside the numbers
QUIET_SECONDS = 60.0  # without a terminal, a line at every tenth of the way, and at least this often
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain_json(value: Any) -> Any:
    """`value` with every float that is not finite as a string, so that strict JSON can hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(name): plain_json(item) for name, item in value.items()}
    return [plain_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def replace_file(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a kill at any moment, sees the old text or the new, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. A torn last line, which a kill leaves behind, is left out.

    Raises ValueError, with the line number, if any other line is not a JSON object with a step.
    """
    lines = Path(path).read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline was torn off
        try:
            row = json.loads(line)
            rows.append({name: _NOT_FINITE.get(item, item) for name, item in row.items() if row["step"] >= 0})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: expected a JSON object with a step, got {line[:80]!r}") from error
    return rows


class Log:
    """The log of one stage: `<workdir>/metrics.jsonl`, TensorBoard events on request, a bar on the terminal.

    `resume_step` is the step of the restored state: rows after it are removed, since they are about to be written
    again; 0 means a start from scratch, with an empty file. So the file of a run that was killed and resumed equals the
    file of an uninterrupted one, but for the keys under "time/", if every row of a step is logged before that step is
    saved. `show` names the metrics beside the bar (default: the first four of a row). Give `write=False` on all
    processes but the first.
    """

    def __init__(
        self,
        workdir: str | Path,
        total_steps: int,
        *,
        title: str,
        resume_step: int = 0,
        tensorboard: bool = False,
        quiet: bool = False,
        show: tuple[str, ...] = (),
        write: bool = True,
    ):
        self.path = Path(workdir) / "metrics.jsonl"
        self._show, self._file, self._events = show, None, None
        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            keep_rows(self.path, resume_step)
            self._file = self.path.open("a", encoding="utf-8")
            self._events = _events(self.path.parent, resume_step) if tensorboard else None
        self._bar = _Bar(title, total_steps, start=resume_step, quiet=quiet or not write)

    def log(self, step: int, metrics: Mapping[str, Any], split: str = "train", times: Mapping | None = None) -> None:
        """Writes one row: {"step", "split", the metrics, "time/<name>" for `times`}. Values are scalars.

        Raises ValueError for a metric named step, split or time/..., which would not be what it says.
        """
        wrong = [name for name in metrics if name in ("step", "split") or name.startswith("time/")]
        if wrong:
            raise ValueError(f"metrics named {wrong}: these names are taken; wall-clock values go into times=")
        row: dict[str, Any] = {"step": int(step), "split": split}
        row |= {name: _scalar(value) for name, value in metrics.items()}
        row |= {f"time/{name}": _scalar(value) for name, value in (times or {}).items()}
        if self._file:
            self._file.write(json.dumps(plain_json(row), allow_nan=False) + "\n")
            self._file.flush()
        if self._events:
            for name, value in list(row.items())[2:]:  # after step and split
                self._events.add_scalar(f"{split}/{name}", value, row["step"])
        if split == "train":
            names = self._show or tuple(metrics)[:4]
            self._bar.update(row["step"], "  ".join(f"{name} {row[name]:.4g}" for name in names if name in row))

    def tick(self, step: int) -> None:
        """Moves the bar without a row: for the steps that are not logged."""
        self._bar.update(step)

    def close(self) -> None:
        self._bar.close()
        for sink in (self._file, self._events):
            if sink:
                sink.close()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def progress(iterable: Iterable, title: str, *, total: int | None = None, quiet: bool = False) -> Iterator[Any]:
    """The items of `iterable`, with a bar: for long work that is not a train loop. `total` defaults to its length."""
    if total is None:
        total = len(iterable) if hasattr(iterable, "__len__") else 0  # type: ignore[arg-type]
    bar = _Bar(title, total, quiet=quiet)
    try:
        for count, item in enumerate(iterable, start=1):
            yield item
            bar.update(count)
    finally:
        bar.close()


def _scalar(value: Any) -> int | float:
    return value if isinstance(value, int) else float(value)


def keep_rows(path: Path, step: int) -> None:
    """Keeps the rows of a file up to `step`, byte for byte; at step 0 none."""
    if not path.exists():
        return
    rows, lines = read_metrics(path), path.read_text(encoding="utf-8", errors="replace").split("\n")
    replace_file(path, "".join(f"{line}\n" for row, line in zip(rows, lines) if step > 0 and row["step"] <= step))


def _events(workdir: Path, step: int):
    from tensorboardX import SummaryWriter  # slow to import, and most runs do without

    return SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else 0)


class _Bar:
    """A rich bar if stderr is a terminal, else a plain line now and then. All bars of a process share one display."""

    display: Progress | None = None
    users = 0

    def __init__(self, title: str, total: int, *, start: int = 0, quiet: bool = False):
        self.title, self.total, self.quiet = title, total, quiet
        self.step, self.text, self.printed, self.began = start, "", start, time.monotonic()
        self.start, self.last = start, self.began
        self.task = None if quiet or not sys.stderr.isatty() else self._open()

    def _open(self):
        display = _Bar.display
        if display is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            display = Progress(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True))
            display.start()
        _Bar.display, _Bar.users = display, _Bar.users + 1
        return display.add_task(self.title, total=self.total or None, completed=self.start, text="")

    def update(self, step: int, text: str | None = None) -> None:
        self.step, self.text = step, self.text if text is None else text
        if self.task is not None and _Bar.display is not None:
            _Bar.display.update(self.task, completed=step, text=self.text)
        elif not self.quiet and self._due():
            self.print()

    def _due(self) -> bool:
        tenth = self.total > 0 and 10 * self.step // self.total > 10 * self.printed // self.total
        return tenth or time.monotonic() - self.last >= QUIET_SECONDS

    def print(self) -> None:
        """One plain line: title, step, share done, time left, metrics."""
        self.printed, self.last = self.step, time.monotonic()
        line = f"{self.title}  {self.step}"
        if self.total:
            left = (self.last - self.began) * (self.total - self.step) / max(self.step - self.start, 1)
            line += f"/{self.total}  {self.step / self.total:4.0%}  {left:.0f} s left"
        print(f"{line}  {self.text}".rstrip(), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Takes the bar off the shared display, which ends with its last bar."""
        if self.task is None or _Bar.display is None:
            return
        _Bar.display.stop_task(self.task)
        self.task, _Bar.users = None, _Bar.users - 1
        if _Bar.users == 0:
            _Bar.display.stop()
            _Bar.display = None
