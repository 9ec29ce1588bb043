"""What waits between iterations: batches that are learnt from some steps later, replies that go on in the next ones."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from alignax.ops.checks import needs
from alignax.sampling.options import Options
from alignax.sampling.sample import by_group
from alignax.sampling.slots import UNFINISHED, answered
from alignax.train.algorithm import Actors, Algorithm
from alignax.train.reading import whole
from alignax.train.state import OnlineState, noise_of, reply_keys
from alignax.types import Rollout

Waiting = tuple[Rollout, dict]  # replies, and the prompts that they answer


def next_batch(
    algorithm: Algorithm, state: OnlineState, new: Rollout, prompts: dict
) -> tuple[Rollout, dict, tuple[Waiting, ...]]:
    """(rollout to learn from, its prompts, what waits from now on), after `online.sampled` gave a new one.

    k steps off-policy it is the oldest that waits. Of replies that are carried over it is those to the oldest prompts
    that are answered, as many as are new.
    """
    if not algorithm.carried:
        (rollout, prompts), *pending = *state.pending, (new, prompts)
        return rollout, prompts, tuple(pending)
    P, group, (reason_R,) = len(prompts["row"]), algorithm.group, needs(new, "reason")
    ((_, old),) = state.pending
    asked = joined(old, begun(algorithm, state, prompts, state.step + algorithm.carried)[1])
    order = jnp.argsort(~answered(reason_R, group), stable=True)
    order = jnp.concatenate([order[:P], jnp.sort(order[P:])])
    new, asked = by_group(new, order, group), by_group(asked, order)
    part = lambda tree, some: jax.tree.map(lambda x: x[some], tree)  # noqa: E731
    waits = part(new, slice(P * group, None)), part(asked, slice(P, None))
    learnt = {name: x[:P] for name, x in asked.items() if name != "noise"}
    return part(new, slice(P * group)), learnt, (waits,)


def begun(algorithm: Algorithm, state: OnlineState, prompts: dict, number: Array | int) -> Waiting:
    """Replies of no token yet to the batch of that number; its prompts have the noise of each, [P M K]."""
    group, room = algorithm.group, ((0, 0), (0, algorithm.max_new_tokens))
    key = noise_of(jax.random.wrap_key_data(state.key), jnp.asarray(number))
    noise = jax.random.key_data(reply_keys(key, prompts["row"], group))
    tokens, valid = (jnp.pad(jnp.repeat(prompts[name], group, axis=0), room) for name in ("tokens", "valid"))
    none, zero = jnp.zeros(tokens.shape, bool), jnp.zeros(len(tokens), jnp.int32)
    rollout = Rollout(
        tokens=tokens, valid=valid, mask=none, old_logp=jnp.zeros(tokens.shape), finished=zero > 0,
        reason=zero + UNFINISHED, source=zero, version=zero,
    )  # fmt: skip
    return rollout, prompts | {"noise": noise.reshape(-1, group, *noise.shape[1:])}


def went_on(algorithm: Algorithm, actors: Actors, frozen: dict, state: OnlineState, prompts: dict) -> Rollout:
    """The replies that wait and those to new prompts behind them, until as many prompts are answered as are new.

    Partial rollouts: Kimi Team 2025 (arXiv 2501.12599, section 2.6.2). That an iteration ends when enough prompts are
    answered is APRIL's (Zhou et al. 2025, arXiv 2509.18521). What older weights have written stays, with their
    log-probabilities; the policy of today reads it and goes on.
    """
    P, group, (waits,) = len(prompts["row"]), algorithm.group, state.pending
    before, asked = joined(waits, begun(algorithm, state, prompts, state.step + algorithm.carried))
    # each device has the rows of one stretch: of old prompts and new ones its share of both
    order = jnp.arange(len(asked["row"])).reshape(-1, P).T.ravel()
    given, asked = by_group(before, order, group), by_group(asked, order)
    keys = jax.random.wrap_key_data(asked["noise"].reshape(-1, *asked["noise"].shape[2:]))
    options = Options(temperature=algorithm.temperature, **algorithm.sampling_filters)
    how = {"group": group, "begun": given, "enough": P}
    own = whole(state.policy.params, frozen, "policy")
    new = actors.sampler.reply(own, asked["tokens"], asked["valid"], keys, options, **how)
    new = by_group(new, jnp.argsort(order), group)
    return new.replace(source=before.source, version=jnp.where(before.mask.any(1), before.version, state.step))


def joined(first: Any, second: Any) -> Any:
    """Two trees of rows, one behind the other."""
    return jax.tree.map(lambda *x: jnp.concatenate(x), first, second)
