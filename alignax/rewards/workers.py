"""Calls side by side with a time limit: in threads, or, of an async function, in one event loop."""

import asyncio
import concurrent.futures
import inspect
import multiprocessing.pool
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

GRACE_S = 1.0  # that an event loop is given to say what was late, before it counts as one that hangs
LATE = object()  # the value of a call that did not come back in time


class Workers:
    """`count` calls at once. A thread that hangs is left behind, and so is an event loop that is blocked."""

    def __init__(self, count: int, timeout_s: float):
        self.count, self.timeout_s = count, timeout_s
        self._pool, self._loop = None, None

    def map(self, function: Callable[..., Any], calls: Sequence[tuple]) -> list[Any]:
        """function(*call) of each, in order; `LATE` for those that took longer than `timeout_s` after all began.

        What a call raises comes out here. Without a limit (0) the calls are made one by one in this thread; those of an
        async function all in one event loop, which lasts from batch to batch.
        """
        if inspect.iscoroutinefunction(function):
            return self._in_loop(function, calls)
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

    def _in_loop(self, function: Callable[..., Any], calls: Sequence[tuple]) -> list[Any]:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True).start()
        out: list[Any] = [LATE] * len(calls)
        running = asyncio.run_coroutine_threadsafe(self._gathered(function, calls, out), self._loop)
        try:
            raised = running.result(self.timeout_s + GRACE_S if self.timeout_s else None)
        except concurrent.futures.TimeoutError:  # a call blocks the loop: what it has not said yet is late
            self._loop = None
            return list(out)
        if raised is not None:
            raise raised
        return out

    async def _gathered(self, function: Callable[..., Any], calls: Sequence[tuple], out: list[Any]) -> Any:
        """Fills `out`; the first exception of a call, as a value: one that is raised here would be another there."""
        free = asyncio.Semaphore(self.count)

        async def one(i: int, call: tuple) -> None:
            async with free:
                out[i] = await function(*call)

        tasks = [asyncio.create_task(one(i, call)) for i, call in enumerate(calls)]
        if not tasks:
            return None
        done, late = await asyncio.wait(tasks, timeout=self.timeout_s or None, return_when=asyncio.FIRST_EXCEPTION)
        for task in late:
            task.cancel()
        return next((error for task in tasks if task in done and (error := task.exception())), None)
