"""The loop: metrics one step late and complete, resume, evaluations, NaN stops, no recompiles."""

import json
import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from errors import refuses
from tiny import close, demo_batch, objectives, tiny

from alignax import sharding
from alignax.checkpoint import Steps
from alignax.log import Log, read_metrics
from alignax.stages.parents import place
from alignax.train.loop import NonFinite, due, fit, resume
from alignax.train.optimizer import adamw, sgd
from alignax.train.state import TrainState, new_state
from alignax.train.step import make_step
from alignax.types import Loss


class Late:
    """A metric that records when it is fetched."""

    def __init__(self, value, events, step):
        self.value, self.events, self.step = value, events, step

    def __array__(self, dtype=None, copy=None):
        self.events.append(f"fetch {self.step}")
        return np.asarray(self.value, dtype)


class NoSteps(Steps):
    """Writes down what would be saved."""

    def __init__(self, events):
        self.events, self.directory = events, "there"

    def latest(self):
        return None

    def save(self, step, state):
        self.events.append(f"save {step}")
        return True


class NoLog(Log):
    """Writes down what would be logged."""

    def __init__(self, events):
        self.events = events

    def log(self, step, metrics, split="train", times=None):
        self.events.append(f"{split} {step}")


def _counter(events, bad=()):
    def step(state, batch):
        n = int(state.step) + 1
        events.append(f"step {n}")
        metrics = {"loss": Late(float("nan") if n in bad else 1.0, events, n)}
        return TrainState(learner=state.learner, step=jnp.int32(n)), metrics

    return step


def _start(step=0):
    state = new_state(jnp.float32(0), sgd(total_steps=1))
    return TrainState(learner=state.learner, step=jnp.int32(step))


def _run(events, total=4, start=0, save=2, every=0, bad=(), **more):
    evaluate = lambda state: events.append(f"evaluate {int(state.step)}") or {"x": 1.0}  # noqa: E731
    return fit(
        _start(start), _counter(events, bad), lambda step: step, total_steps=total, steps=NoSteps(events),
        log=NoLog(events), put=lambda batch: batch, save_every_steps=save, evaluate=evaluate if every else None,
        eval_every_steps=every, **more,
    )  # fmt: skip


def test_a_run_that_is_asked_to_stop_saves_and_stops():
    events = []
    assert _run(events, total=9, save=4, stops=lambda: "step 3" in events).step == 3
    assert events[-3:] == ["fetch 3", "train 3", "save 3"] and "step 4" not in events
    events = []
    assert _run(events, total=3, save=4, stops=lambda: "step 3" in events).step == 3 and events.count("save 3") == 1


def test_metrics_are_fetched_one_step_late_in_order_and_before_a_save():
    events = []
    assert _run(events, total=5, save=3).step == 5
    assert events == [
        "step 1",
        "step 2", "fetch 1", "train 1",
        "step 3", "fetch 2", "train 2", "fetch 3", "train 3", "save 3",  # a save waits: its metrics must be finite
        "step 4",
        "step 5", "fetch 4", "train 4", "fetch 5", "train 5", "save 5",  # the last step is saved whatever the interval
    ]  # fmt: skip


def test_evaluates_at_the_start_at_the_interval_and_at_the_end():
    events = []
    _run(events, total=5, save=100, every=2)
    assert [e for e in events if e.startswith(("evaluate", "eval "))] == [
        "evaluate 0", "eval 0", "evaluate 2", "eval 2", "evaluate 4", "eval 4", "evaluate 5", "eval 5"]  # fmt: skip
    assert events.index("train 2") < events.index("eval 2") < events.index("step 3")


def test_a_resumed_run_does_not_evaluate_its_start_again_and_a_finished_one_does_nothing():
    events = []
    _run(events, total=4, start=2, every=4)
    assert events[0] == "step 3" and events.count("evaluate 4") == 1
    done = []
    assert _run(done, total=4, start=4, every=4).step == 4 and done == []


@pytest.mark.parametrize("bad, save", [(4, 2), (3, 2), (1, 1), (5, 100)])
def test_nan_stops_names_the_step_and_nothing_later_is_saved(bad, save):
    events = []
    with refuses(NonFinite, f"step {bad}", "loss is nan", "none"):
        _run(events, total=8, save=save, bad=(bad,))
    saved = [int(e.split()[1]) for e in events if e.startswith("save")]
    assert saved == [s for s in range(1, bad) if s % save == 0]
    assert f"train {bad}" not in events and f"step {bad + 2}" not in events


@pytest.mark.parametrize("every, total, want", [(0, 4, []), (3, 7, [3, 6, 7]), (9, 4, [4])])
def test_due(every, total, want):
    assert [step for step in range(1, total + 1) if due(step, every, total)] == want


# ---- with real checkpoints and a real log


def _square(params, _, batch):
    """(w - x)^2: a batch of nan gives a loss of nan."""
    return {"loss": (1.0, Loss(value=(params - batch["x"]) ** 2, weight=jnp.ones_like(batch["x"]), metrics={}))}


def _fit_for_real(folder, make_batch, total=6, save=2, ideal=None):
    optimizer = adamw(total_steps=6, learning_rate=0.1)
    step = jax.jit(make_step(_square, optimizer), donate_argnums=0)
    with Steps(folder / "steps") as steps:
        state = resume(steps, new_state(jnp.float32(0), optimizer))
        with Log(folder, total, title="t", resume_step=int(state.step), quiet=True) as log:
            return fit(
                state, lambda s, b: step(s, b, ()), make_batch, total_steps=total, steps=steps, log=log,
                put=lambda b: b, save_every_steps=save, evaluate=lambda s: {"w": float(s.learner.params)},
                eval_every_steps=3, ideal_seconds=ideal,
            )  # fmt: skip


def test_utilisation_is_logged_where_the_peak_is_known(tmp_path):
    for name, ideal in (("known", 1e-3), ("unknown", None)):
        _fit_for_real(tmp_path / name, _batch, total=2, ideal=ideal)
    known, unknown = (
        [row for row in read_metrics(tmp_path / name / "metrics.jsonl") if row["split"] == "train"]
        for name in ("known", "unknown")
    )
    assert [row["time/mfu"] for row in known] == pytest.approx([1e-3 / row["time/step"] for row in known])
    assert not any("time/mfu" in row for row in unknown)


def _batch(step):
    return {"x": np.random.default_rng(step).normal(2, 1, 4).astype(np.float32)}


def _rows(folder):
    return [
        {k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(folder / "metrics.jsonl")
    ]


def test_a_killed_run_goes_on_to_the_same_bits_and_the_same_log(tmp_path):
    whole = _fit_for_real(tmp_path / "whole", _batch)

    def killed(step):
        if step == 5:
            raise KeyboardInterrupt
        return _batch(step)

    with pytest.raises(KeyboardInterrupt):
        _fit_for_real(tmp_path / "cut", killed)
    resumed = _fit_for_real(tmp_path / "cut", _batch)
    close(resumed, whole, atol=0)
    assert _rows(tmp_path / "cut") == _rows(tmp_path / "whole")
    assert [(row["split"], row["step"]) for row in _rows(tmp_path / "whole")] == [
        ("eval", 0), ("train", 1), ("train", 2), ("train", 3), ("eval", 3), ("train", 4), ("train", 5), ("train", 6),
        ("eval", 6)]  # fmt: skip


def test_a_nan_batch_keeps_the_last_good_checkpoint_and_a_repaired_run_goes_on(tmp_path):
    def spoilt(step):
        return {"x": _batch(step)["x"] * (np.nan if step == 3 else 1)}  # the batch of the fourth step

    with refuses(NonFinite, "step 4:", "loss is nan", "step 2", "kept"):
        _fit_for_real(tmp_path, spoilt)
    with Steps(tmp_path / "steps") as steps:
        assert steps.latest() == 2
    assert max(row["step"] for row in _rows(tmp_path)) == 3
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert np.isfinite(_fit_for_real(tmp_path, _batch).learner.params)
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 6


def test_a_sharded_run_traces_and_compiles_its_step_once(tmp_path, caplog):
    model, params = tiny()
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    optimizer = adamw(total_steps=6)
    state = place(lambda p: new_state(p, optimizer), params, mesh=mesh)
    body = make_step(objectives(model)["sft"][0], optimizer)

    @chex.assert_max_traces(1)
    def the_step(state, batch, frozen):
        return body(state, batch, frozen)

    step = sharding.jit_step(the_step, state)
    with jax.log_compiles(), caplog.at_level(logging.WARNING), Steps(tmp_path / "steps") as steps:
        state = fit(
            state, lambda s, b: step(s, b, ()), lambda i: jax.tree.map(np.asarray, demo_batch(seed=i)), total_steps=6,
            steps=steps, log=NoLog([]), put=lambda b: sharding.put_batch(b, mesh), save_every_steps=3,
        )  # fmt: skip
    compiles = [
        r.getMessage() for r in caplog.records if "XLA compilation" in r.getMessage() and "the_step" in r.getMessage()
    ]
    assert state.step == 6 and len(compiles) == 1, compiles
