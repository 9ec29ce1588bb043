"""Rewards in Python over text: `reward(row, completion, *, finished) -> number, None or parts with a "total"`.

They run on the host, in threads side by side, with a time limit, while the device may work.
"""

import math
import multiprocessing.pool
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float


@runtime_checkable
class TextReward(Protocol):
    """What a config names as a reward over text, its settings bound."""

    def __call__(self, row: dict, completion: str, *, finished: bool) -> Any:
        """A number, None where there is none, or parts with a "total"."""
        ...


class Workers:
    """Threads that score replies. One that hangs is left behind, and counts as a thread that is gone."""

    def __init__(self, count: int, timeout_s: float):
        self.count, self.timeout_s, self._pool = count, timeout_s, None

    def map(self, function: Callable[..., Any], calls: Sequence[tuple]) -> list[Any]:
        """function(*call) of each, in order; `LATE` for those that took longer than `timeout_s` after all began.

        What a call raises comes out here. Without a limit (0) the calls are made one by one in this thread.
        """
        if not self.timeout_s:
            return [function(*call) for call in calls]
        self._pool = self._pool or multiprocessing.pool.ThreadPool(self.count)
        pending = [self._pool.apply_async(function, call) for call in calls]
        until, out = time.monotonic() + self.timeout_s, []
        for one in pending:
            try:
                out.append(one.get(max(until - time.monotonic(), 0.0)))
            except multiprocessing.TimeoutError:
                out.append(LATE)
        if any(value is LATE for value in out):
            self._pool.terminate()  # drops what has not begun; a thread that hangs ends with the process
            self._pool = None
        return out


LATE = object()  # the value of a call that did not come back in time


def score_texts(
    reward: TextReward, rows: Sequence[dict], completions: Sequence[str], finished: Bool[np.ndarray, " B"],
    workers: Workers,
) -> tuple[Float[np.ndarray, " B"], list[int]]:  # fmt: skip
    """(one number for each reply, nan where there is none; which of them came too late).

    Raises ValueError, naming the reply, for what is no single finite number.
    """
    one = lambda *call: total_reward(reward, *call, missing=True)["total"]  # noqa: E731
    found = workers.map(one, list(zip(rows, completions, map(bool, finished), strict=True)))
    late = [i for i, value in enumerate(found) if value is LATE]
    return np.array([math.nan if value is LATE else value for value in found], np.float32), late


def total_reward(
    reward: Callable, row: dict, completion: str, finished: bool, *, missing: bool = False
) -> dict[str, float]:
    """What a text reward says of one completion, as parts with a "total"; a bare number is the total.

    A total of None or nan says that the completion cannot be scored: nan where a `missing` score will do, where other
    parts may be missing too. Raises ValueError for one where it will not, for an infinite number, and for what is no
    single number.
    """
    try:
        value = reward(row, completion, finished=finished)
    except Exception as error:
        error.add_note(f"(of the reply {completion!r} to the row {row!r})")
        raise
    expected = "expected a finite number or total" + (", or None or nan where there is no score" if missing else "")
    refusal = f"the reward function gave {value!r} for {completion!r}: {expected}"
    try:
        parts = {name: _number(part) for name, part in (value if isinstance(value, dict) else {"total": value}).items()}
    except (TypeError, ValueError):
        raise ValueError(refusal) from None
    fits = [math.isfinite(part) or (missing and math.isnan(part)) for part in parts.values()]
    if "total" not in parts or not all(fits):
        raise ValueError(refusal)
    return parts


def _number(value: Any) -> float:
    """A number of any library, as a float; None is nan. Raises TypeError for text and for arrays with an axis."""
    if isinstance(value, (str, bytes)) or getattr(value, "ndim", 0):
        raise TypeError(f"{value!r} is no single number")
    return math.nan if value is None else float(value)
