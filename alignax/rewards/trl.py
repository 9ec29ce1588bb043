"""Reward functions of TRL's form, unchanged: `reward(prompts, completions, **columns) -> [number or None, ...]`."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from alignax.config import resolve


def trl(
    rows: Sequence[dict], completions: Sequence[str], *, finished: Sequence[bool], reward: str | Callable,
    messages: bool | None = None,
) -> list[float | None]:  # fmt: skip
    """What a reward function of TRL's online trainers says of the replies to one prompt.

    It gets `prompts`, `completions`, every other column of the data as a list, and, as from TRL, `trainer_state` (None
    here), `log_extra` and `log_metric` (which do nothing). TRL calls it with a whole batch, here it is called once for
    each prompt. It gets no `completion_ids`. It may be `async def`.

    Args:
      reward: module:function, or the function itself.
      messages: whether a completion is [{"role": "assistant", "content": text}]; None: where the prompts are messages.
    """
    del finished
    function = _function(reward)
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("prompt", "completion")}
    chat = isinstance(rows[0].get("prompt"), list) if messages is None else messages
    replies = [[{"role": "assistant", "content": text}] if chat else text for text in completions]
    given = {"trainer_state": None, "log_extra": _nothing, "log_metric": _nothing} | columns
    out = function(prompts=[row.get("prompt") for row in rows], completions=replies, **given)
    return list(asyncio.run(out) if inspect.iscoroutine(out) else out)


@cache
def _function(reward: str | Callable) -> Callable:
    return resolve(reward, "", key="rewards.*.reward")


def _nothing(*args: Any, **given: Any) -> None:
    del args, given
