"""Rewards in Python over text: `reward(row, completion, *, finished) -> number, None or parts with a "total"`.

They run on the host, side by side, with a time limit, while the device may work. A function with a parameter named
`completions` is one of whole groups: `reward(rows, completions, *, finished) -> [number, ...]`, called once for all
replies to a prompt. Either may be `async def`.
"""

import asyncio
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from alignax.bound import takes
from alignax.rewards.workers import LATE, Workers


@runtime_checkable
class TextReward(Protocol):
    """What a config names as a reward over text, its settings bound."""

    def __call__(self, row: dict, completion: str, *, finished: bool) -> Any:
        """A number, None where there is none, or parts with a "total"."""
        ...


@runtime_checkable
class GroupReward(Protocol):
    """One of all replies to a prompt at once; each comes with its row, which is the same for all."""

    def __call__(self, rows: Sequence[dict], completions: Sequence[str], *, finished: Sequence[bool]) -> Any:
        """One value for each reply, as a `TextReward` gives it."""
        ...


AnyReward = TextReward | GroupReward


class Trouble(NamedTuple):
    """What is done about a call that fails: one that raises, or whose values are not what a reward's are."""

    retries: int = 0  # calls again, at once
    missing: bool = False  # its replies have no score, once it failed again; else what it raised comes out

    def after(self, error: Exception, left: int) -> Exception | None:
        """None: it is called again. Else the error, as the call's value, where a missing score will do.

        Raises the error where it will not, and for a package that is missing: no reply is to blame.
        """
        if left and not isinstance(error, ImportError):
            return None
        if self.missing and not isinstance(error, ImportError):
            return error
        raise error


STOP = Trouble()


class Scores(NamedTuple):
    """What a reward says of replies."""

    values: Float[np.ndarray, " B"]  # nan where there is none
    late: list[int]  # those that were not scored in time
    failed: dict[int, Exception]  # those whose calls failed, and how


def is_grouped(reward: AnyReward) -> bool:
    """Whether it scores all replies to a prompt at once."""
    return takes(reward, "completions")


def is_async(reward: AnyReward) -> bool:
    """Whether its calls are to be awaited."""
    return inspect.iscoroutinefunction(getattr(reward, "function", reward))


def score_texts(
    reward: AnyReward, rows: Sequence[dict], completions: Sequence[str], finished: Bool[np.ndarray, " B"],
    workers: Workers, *, group: int = 1, trouble: Trouble = STOP,
) -> Scores:  # fmt: skip
    """One number for each reply; those to one prompt, `group` neighbours, are one call of a grouped reward.

    Raises what a call raises, unless `trouble` lets its replies do without a score; ValueError, naming the reply, for
    what is no single finite number, and for another number of values than of replies.
    """
    size = group if is_grouped(reward) else 1
    parts = [slice(i, i + size) for i in range(0, len(completions), size)]
    calls = [(rows[part], completions[part], [bool(x) for x in finished[part]]) for part in parts]
    found = workers.map(guarded(reward, trouble), calls)
    values, late, failed = np.full(len(completions), math.nan, np.float32), [], {}
    for part, value in zip(parts, found, strict=True):
        replies = range(part.start, part.start + size)
        if value is LATE:
            late += replies
        elif isinstance(value, Exception):
            failed |= dict.fromkeys(replies, value)
        else:
            values[part] = value
    return Scores(values, late, failed)


def guarded(reward: Callable, trouble: Trouble, read: Callable | None = None) -> Callable:
    """A call of the reward (rows, completions, finished) -> what `read` makes of its value, totals unless given.

    Or the exception that a missing score is for.
    """
    read = read or totals

    def act(*call: Any) -> Any:
        for left in range(trouble.retries, -1, -1):
            try:
                return read(reward, asked(reward, *call), *call)
            except Exception as error:
                if (failure := trouble.after(error, left)) is not None:
                    return failure
        return None

    async def act_async(*call: Any) -> Any:
        for left in range(trouble.retries, -1, -1):
            try:
                return read(reward, await asked(reward, *call), *call)
            except Exception as error:
                tell(error, *call[:2])
                if (failure := trouble.after(error, left)) is not None:
                    return failure
        return None

    return act_async if is_async(reward) else act


def asked(reward: Callable, rows: Sequence[dict], completions: Sequence[Any], finished: Sequence[bool]) -> Any:
    """What a reward gives for replies, texts or lists of steps: for all at once, or for the one that there is.

    A note on what it raises says for which.
    """
    try:
        if is_grouped(reward):
            return reward(rows, completions, finished=finished)
        return reward(rows[0], completions[0], finished=finished[0])
    except Exception as error:
        tell(error, rows, completions)
        raise


def tell(error: Exception, rows: Sequence[dict], completions: Sequence[Any]) -> None:
    """Adds to an exception for which replies it was raised."""
    whose = f"reply {completions[0]!r}" if len(completions) == 1 else f"replies {completions!r}"
    error.add_note(f"(of the {whose} to the row {rows[0]!r})")


def totals(reward: AnyReward, value: Any, rows: Sequence[dict], completions: Sequence[str], finished: Any) -> list:
    """The totals of what a call gave, nan for None. Raises ValueError for what they cannot be."""
    del rows, finished
    values = list_of(reward, value, completions)
    return [parts_of(one, text, missing=True)["total"] for one, text in zip(values, completions, strict=True)]


def list_of(reward: AnyReward, value: Any, completions: Sequence[str]) -> list:
    """One value for each reply. Raises ValueError for another number of them."""
    if not is_grouped(reward):
        return [value]
    return several(reward, value, len(completions), "replies")


def several(reward: Callable, value: Any, count: int, what: str) -> list:
    """The values of a call, one for each of so many. Raises ValueError for another number of them, and for no list."""
    listed = hasattr(value, "__len__") and not isinstance(value, (str, bytes, dict))
    if not listed or len(value) != count:
        name, got = getattr(reward, "name", getattr(reward, "__name__", reward)), repr(value)
        got = f"{len(value)} values" if listed else got
        raise ValueError(
            f"the reward {name!r} gave {got} for {count} {what}: expected a list of {count}, one number for each"
        )
    return list(value)


def total_reward(
    reward: AnyReward, row: dict, completion: str, finished: bool, *, missing: bool = False
) -> dict[str, float]:
    """What a text reward says of one completion, as parts with a "total"; a bare number is the total.

    A total of None or nan says that the completion cannot be scored: nan where a `missing` score will do, where other
    parts may be missing too. Raises ValueError for one where it will not, for an infinite number, and for what is no
    single number.
    """
    value = asked(reward, [row], [completion], [finished])
    value = asyncio.run(value) if is_async(reward) else value
    (one,) = list_of(reward, value, [completion])
    return parts_of(one, completion, missing=missing)


def parts_of(value: Any, completion: str, *, missing: bool) -> dict[str, float]:
    """One value of a reward as parts with a "total"; see `total_reward`."""
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


def number(value: Any, text: str) -> float:
    """A finite number, or nan for None. Raises ValueError for what is none."""
    return parts_of({"total": value}, text, missing=True)["total"]


def _number(value: Any) -> float:
    """A number of any library, as a float; None is nan. Raises TypeError for text and for arrays with an axis."""
    if isinstance(value, (str, bytes)) or getattr(value, "ndim", 0):
        raise TypeError(f"{value!r} is no single number")
    return math.nan if value is None else float(value)
