"""One update as a pure function: gradients of the whole batch, in microbatches if asked, then the optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from alignax.ops.checks import Scalar
from alignax.ops.masked import denominator, metric_ratios, metric_sums, reduce
from alignax.train.optimizer import Optimizer
from alignax.train.state import Learner, TrainState
from alignax.types import Loss, Params

# (params, batch) -> {name: (coefficient, Loss)}; the total is the sum of coefficient * reduced loss.
Objective = Callable[[Params, Any], dict[str, tuple[Scalar, Loss]]]


class Fitted(NamedTuple):
    """An objective that reads no more of a batch than there is in it, by one of a few programs."""

    objective: Callable[[int], Objective]  # by room; 0 is all
    choose: Callable[[Callable[[int], Any], Any], Any]  # (f, batch) -> f(room), for the room that the batch needs


def gradients(
    objective: Objective | Fitted, params: Params, batch: Any, *, microbatches: int = 1, group: int = 1
) -> tuple[Params, dict]:
    """Gradient of the objective over the whole batch, and its metrics; the same for every number of microbatches.

    Every `group` neighbouring rows stay in one microbatch.

    Each term is divided by its denominator over the *whole* batch, taken before the batch is cut: weights do not depend
    on the parameters, so the compiler drops the forward pass of that first walk. Metrics hold "loss" (the total), the
    reduced value of each term under its name, the metrics of the losses, and "grad_norm".

    Raises ValueError if the rows do not divide into the microbatches.
    """
    if microbatches == 1:
        (_, (values, sums)), grads = _part(objective, None)(params, batch)
    else:
        parts = cut(batch, microbatches, group)
        whole = objective.objective(0) if isinstance(objective, Fitted) else objective
        weights = lambda part: {name: denominator(loss) for name, (_, loss) in whole(params, part).items()}  # noqa: E731
        totals = jax.tree.map(jnp.sum, jax.lax.map(weights, parts))
        run = _part(objective, totals)

        def add(carry, part):
            (_, aux), grads = run(params, part)
            return jax.tree.map(jnp.add, carry, (grads, aux)), None

        (_, aux), grads = jax.eval_shape(run, params, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, aux))
        (grads, (values, sums)), _ = jax.lax.scan(add, zeros, parts)
    return grads, values | metric_ratios(sums) | {"grad_norm": optax.global_norm(grads)}


def _part(objective: Objective | Fitted, totals: dict[str, Array] | None):
    if isinstance(objective, Fitted):  # the choice is outside of the derivative: inside it would keep what all need
        of = lambda params, part: lambda room: _part(objective.objective(room), totals)(params, part)  # noqa: E731
        return lambda params, part: objective.choose(of(params, part), part)

    def total(params, part):
        terms = objective(params, part)
        values = {name: reduce(loss, totals[name] if totals else None) for name, (_, loss) in terms.items()}
        loss = sum(coefficient * values[name] for name, (coefficient, _) in terms.items())
        sums = {}
        for _, term in terms.values():
            sums |= metric_sums(term.metrics)
        return loss, (values | {"loss": loss}, sums)

    return jax.value_and_grad(total, has_aux=True)


def cut(batch: Any, parts: int, group: int = 1) -> Any:
    """[B, ...] -> [parts, B / parts, ...]. Group i of neighbours goes to part i mod parts: each part then draws from
    every device."""

    def split(x):
        if x.shape[0] % (parts * group):
            of = f" of {group} each" if group > 1 else ""
            raise ValueError(f"{x.shape[0] // group} rows{of} do not divide into {parts} microbatches")
        apart = x.reshape(-1, parts, group, *x.shape[1:]).swapaxes(0, 1)
        return apart.reshape(parts, -1, *x.shape[1:])

    return jax.tree.map(split, batch)


def uncut(parts: Any, group: int = 1) -> Any:
    """[parts, b, ...] -> [parts * b, ...]: the rows in their order again."""

    def join(x):
        apart = x.reshape(len(x), -1, group, *x.shape[2:]).swapaxes(0, 1)
        return apart.reshape(-1, *x.shape[2:])

    return jax.tree.map(join, parts)


def apply_gradients(learner: Learner, grads: Params, optimizer: Optimizer) -> Learner:
    """The learner after one update."""
    updates, opt_state = optimizer.transform.update(grads, learner.opt_state, learner.params)
    return Learner(params=optax.apply_updates(learner.params, updates), opt_state=opt_state)


def make_step(
    objective: Callable, optimizer: Optimizer, *, microbatches: int = 1, follow: Callable | None = None
) -> Callable:
    """A pure `step(state, batch, frozen) -> (state, metrics)` for `objective(params, frozen, batch)`.

    `frozen` holds the parameters that are read and not trained, a reference policy for example (an argument, since
    what a compiled function closes over is baked into it). With `follow(reference, params, step) -> reference` the
    objective finds the state's own reference at frozen["reference"], which moves after the update. Jit it with the
    state donated.
    """

    def step(state: TrainState, batch: Any, frozen: Params) -> tuple[TrainState, dict]:
        read = frozen | {"reference": state.reference} if follow else frozen
        bound = lambda params, part: objective(params, read, part)  # noqa: E731
        grads, metrics = gradients(bound, state.learner.params, batch, microbatches=microbatches)
        metrics |= {"learning_rate": jnp.float32(optimizer.learning_rate(state.step))}
        learner, done = apply_gradients(state.learner, grads, optimizer), state.step + 1
        moved = follow(state.reference, learner.params, done) if follow else state.reference
        return TrainState(learner=learner, step=done, reference=moved), metrics

    return step
