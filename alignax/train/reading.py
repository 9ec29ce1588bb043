"""How models read a rollout: on which parameters, a prompt once, no more than the replies take."""

from collections.abc import Callable

import jax
from jax import Array
from jaxtyping import Float

from alignax.replies import fitted
from alignax.train.algorithm import Algorithm
from alignax.train.step import cut, uncut
from alignax.types import Params, Rollout


def whole(params: Params, frozen: dict, role: str) -> Params:
    """The parameters of a learner that holds an adapter and a head, with the decoder on which they stand; else its own.

    Inside the compiled program, whose argument `frozen` is: a decoder that stands still is then no constant of it, has
    no gradient, and is no part of the state.

    The sampler, too, applies the adapter beside its kernel. Worked in once per rollout it would take a copy of the
    layers more and save next to no time (benchmarks/roles.py measures both), and round: in bfloat16 a small adapter is
    lost in the kernel's last digits, and the policy that samples is no longer quite the one that learns.
    """
    return frozen["base"][role] | params if frozen.get("base") else params


def rows_of(algorithm: Algorithm, rollout: Rollout) -> dict[str, int]:
    """How a model reads a rollout: where its replies begin, and how many neighbours share a prompt."""
    start = rollout.tokens.shape[1] - algorithm.max_new_tokens
    return {"start": start, "group": algorithm.group if algorithm.share_prompts else 1}


def rooms(algorithm: Algorithm) -> list[int]:
    """Tokens that the replies of a row are given room for: a program each."""
    whole = algorithm.max_new_tokens * (algorithm.group if algorithm.share_prompts else 1)
    return sorted({-(-whole * i // algorithm.length_buckets) for i in range(1, algorithm.length_buckets + 1)})


def by_length(algorithm: Algorithm, rollout: Rollout, f: Callable[..., Array]) -> Float[Array, "B ..."]:
    """f(tokens, valid, **rows), of each microbatch of an update by the program for as much as its replies take."""
    rows, every = rows_of(algorithm, rollout), algorithm.updates()
    parts = every.minibatches * every.microbatches
    if algorithm.length_buckets == 1:
        return f(rollout.tokens, rollout.valid, **rows)

    def one(part: tuple[Array, Array]) -> Array:
        return fitted(lambda room: f(*part, **rows, room=room), rooms(algorithm), part[1], **rows)

    both = (rollout.tokens, rollout.valid)
    return uncut(jax.lax.map(one, cut(both, parts, rows["group"])), rows["group"])


def first_of_each(rollout: Rollout, group: int, count: int) -> Rollout:
    """The first replies of each group."""
    if count == group:
        return rollout
    return jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:])[:, :count].reshape(-1, *x.shape[1:]), rollout)
