"""What an update minimises: the terms of policy, critic and data, over minibatches of a rollout."""

from collections.abc import Callable
from functools import partial
from typing import Any

from jax import Array

from alignax import forward
from alignax.bound import refusals
from alignax.ops.checks import Scalar
from alignax.replies import fitted
from alignax.train.algorithm import Actors, Algorithm
from alignax.train.reading import rooms, rows_of, whole
from alignax.train.state import Learner, OnlineState
from alignax.train.step import Fitted
from alignax.train.updates import Once, epochs_over
from alignax.types import Demo, Loss, Pair, Params, Rollout, Unpaired


def policy_objective(
    algorithm: Algorithm, actors: Actors, frozen: dict, params: Params, rollout: Rollout, kl_coef: Scalar, room: int = 0
) -> dict[str, tuple[Scalar, Loss]]:
    """The terms of the policy's loss on a minibatch."""
    params, rows = whole(params, frozen, "policy"), rows_of(algorithm, rollout) | {"room": room}
    how: dict[str, Any] = {"temperature": algorithm.temperature, "filters": algorithm.learnt_filters}
    how |= rows | {"valued": algorithm.value_coef is not None}
    view = forward.policy_view(actors.policy, params, rollout, **how)
    record = forward.best_and_worst(view, algorithm.learnt) if algorithm.on_pairs else view
    terms = {f"loss/{name}_avg": (coef, term(record)) for name, (coef, term) in algorithm.policy.items()}
    if algorithm.value_coef is not None and algorithm.value is not None:
        terms["loss/value_avg"] = algorithm.value_coef, algorithm.value(view)
    return terms | ({"loss/kl_avg": (kl_coef, algorithm.penalty(view))} if algorithm.penalty else {})


def critic_objective(
    algorithm: Algorithm, actors: Actors, frozen: dict, params: Params, rollout: Rollout, room: int = 0
) -> dict[str, tuple[Scalar, Loss]]:
    """The loss of the critic on a minibatch."""
    assert actors.critic is not None and algorithm.value is not None
    params, rows = whole(params, frozen, "critic"), rows_of(algorithm, rollout) | {"room": room}
    value_BT = forward.values(actors.critic, params, rollout.tokens, rollout.valid, **rows)
    return {"loss/value_avg": (1.0, algorithm.value(rollout.replace(value=value_BT)))}


def data_objective(
    algorithm: Algorithm, actors: Actors, frozen: dict, params: Params, data: dict
) -> dict[str, tuple[Scalar, Loss]]:
    """The policy's loss on rows of data; a loss that compares has the policy's own reference."""
    assert algorithm.data is not None
    params, of = whole(params, frozen, "policy"), algorithm.data
    if of.record is Demo:
        record = forward.demo(actors.policy, params, data)
    else:
        view = {Pair: forward.pair, Unpaired: forward.unpaired}[of.record]
        record = view(actors.policy, params, frozen["reference"], data)
    return {of.term.name: (of.coefficient, of.term(record))}


def update(
    algorithm: Algorithm,
    actors: Actors,
    frozen: dict,
    state: OnlineState,
    rollout: Rollout,
    key: Array,
    data: Any = None,
) -> tuple[Learner, Learner | None, dict]:
    """`epochs_over` the rollout with the objectives of the algorithm; the replies to one prompt stay together."""
    given = (algorithm, actors, frozen)
    policy = lambda room: lambda params, part: policy_objective(*given, params, part, state.kl_coef, room)  # noqa: E731
    critic = lambda room: lambda params, part: critic_objective(*given, params, part, room)  # noqa: E731
    optimizers = algorithm.policy_optimizer(), algorithm.value_optimizer and algorithm.value_optimizer()

    def choose(f: Callable[[int], Any], part: Rollout) -> Any:
        return fitted(f, rooms(algorithm), part.valid, **rows_of(algorithm, part))

    beside = partial(data_objective, *given) if algorithm.data else None
    one = Once(Fitted(policy, choose), Fitted(critic, choose), *optimizers, beside)
    with refusals(f"{algorithm.updates.key}.kl_limit"):
        return epochs_over(
            one, algorithm.updates(), (state.policy, state.critic), rollout, key, group=algorithm.learnt, data=data
        )
