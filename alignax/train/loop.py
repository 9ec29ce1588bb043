"""The loop around a step: resume, batches made ahead, metrics fetched one step late, saves, evaluations, NaN stops."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from alignax.checkpoint import Steps
from alignax.data.loader import prefetch
from alignax.log import Log
from alignax.train.alarms import Alarms


class NonFinite(ArithmeticError):
    """A loss or gradient that is nan or infinite."""


def fit(
    state: Any,
    step_fn: Callable[[Any, Any], tuple[Any, dict]],
    make_batch: Callable[[int], Any],
    *,
    total_steps: int,
    steps: Steps,
    log: Log,
    put: Callable[[Any], Any],
    save_every_steps: int,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    eval_every_steps: int = 0,
    ideal_seconds: float | None = None,
    alarms: Alarms | None = None,
    stops: Callable[[], bool] = lambda: False,
) -> Any:
    """Runs `state, metrics = step_fn(state, batch)` from the state's own step to `total_steps`; returns the last state.

    `state.step` counts finished steps, so a restored state goes on where it was. Metrics of step s are fetched while
    step s + 1 runs, so the host never waits for the device between two steps; they are checked before anything is
    saved. `evaluate(state)` runs every `eval_every_steps` (0: never), at the end, and before the first step. With
    `ideal_seconds`, what a step would take at the devices' peak, the log says which share of it each step reached
    (`time/mfu`). `alarms` look at every row that was logged. Where `stops()`, asked after each step, the state
    is saved and returned: it may be before the last one.

    Raises NonFinite, naming the step and the last good checkpoint, when a loss or gradient norm is not finite, and
    Alarmed when an alarm is to stop the run: after what was logged, before anything else is saved.
    """
    start, pending, begun = int(state.step), None, time.perf_counter()

    def settle() -> None:
        nonlocal pending
        if pending is not None:
            done, metrics, times = pending
            pending = None
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            _check_finite(done, metrics, steps)
            log.log(done, metrics, times=times)
            if alarms:
                alarms.look(done, metrics)

    def evaluated(step: int) -> None:
        if evaluate:
            log.log(step, found := evaluate(state), split="eval")
            if alarms:
                alarms.look(step, found)

    if start == 0:
        evaluated(0)
    waited = time.perf_counter()
    batches = prefetch(make_batch, start, total_steps, put)
    for step, batch in enumerate(batches, start=start + 1):
        called = time.perf_counter()
        state, metrics = step_fn(state, batch)
        settle()
        now = time.perf_counter()
        # host: from the end of one call to the start of the next, which the device spends on work queued before
        pending = step, metrics, {"step": now - begun, "host": called - waited}
        if ideal_seconds is not None:
            pending[2]["mfu"] = ideal_seconds / (now - begun)
        begun = waited = now
        evaluates, stopped = due(step, eval_every_steps, total_steps), stops()
        saves = step % save_every_steps == 0 or step == total_steps or stopped
        if saves or (evaluate and evaluates):
            settle()
        if evaluates:
            evaluated(step)
        if saves:
            steps.save(step, on_host(state))
        if stopped:
            return state
        if saves or evaluates:
            begun = waited = time.perf_counter()
    settle()
    return state


def due(step: int, every: int, total: int) -> bool:
    """Whether something done every so many steps is done after this one; the last step always is."""
    return every > 0 and (step % every == 0 or step == total)


def on_host(state: Any) -> Any:
    """A copy that the next, donating step cannot overwrite: on CPU a checkpoint is written from the live buffers."""
    return jax.tree.map(jnp.copy, state) if jax.default_backend() == "cpu" else state


def resume(steps: Steps, state: Any) -> Any:
    """The last saved state, on the shardings of `state`, or `state` itself when nothing was saved."""
    found = steps.restore_latest(jax.tree.map(_abstract, state))
    return state if found is None else found[1]


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _check_finite(step: int, metrics: Mapping[str, float], steps: Steps) -> None:
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        saved = steps.latest()
        kept = "none was saved yet" if saved is None else f"step {saved} in {steps.directory} is kept"
        raise NonFinite(
            f"step {step}: {', '.join(f'{name} is {metrics[name]}' for name in bad)}. Stopped; last good checkpoint: "
            f"{kept}. Lower the learning rate or the gradient clip, or look for bad rows in the batch of this step."
        )
