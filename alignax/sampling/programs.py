"""The programs of a service of slots (`service.py`): pure functions of one state, of fixed shapes.

A slot's row of the state is its own: prompt and reply in the cache, every setting, the key of its noise. So no request
compiles anything, and nothing of a slot depends on the others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from alignax.ops import output
from alignax.ops.checks import Refused, require
from alignax.sampling import options
from alignax.sampling import slots as _slots
from alignax.sampling.options import Options
from alignax.sampling.sampler import Sampler
from alignax.types import Params

STRIDE = 4  # tokens between two looks of the host
SHORTEST = 32  # tokens: shorter prompts are padded to it
TOP = 20  # alternatives to a token that may be asked for
SEEDS = 2**32


class Ask(NamedTuple):
    """A request for one reply. The settings are those of `Options`, at values that change nothing."""

    ids: tuple[int, ...]
    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop: tuple[str, ...] = ()
    seed: int | None = None  # None: a new one
    number: int = 0  # of the reply among those of one seed: the row of `sample.row_keys`
    top: bool = False  # whether the most probable tokens are wanted at each place


class TooLong(Refused):
    """A prompt, with its reply, that no slot has room for."""


class Settings(NamedTuple):
    """What a slot is written with."""

    options: Options  # every leaf with one row
    limit: Any  # [1] new tokens
    top: Any  # [1] bool
    seed: Any
    number: Any


class State(NamedTuple):
    """All that is on the device for N slots."""

    slots: _slots.Slots
    options: Options
    limit: Array  # [N]
    top: Array  # [N]


class Weights(NamedTuple):
    """The policy as the programs take it: it is held twice, stacked to read prompts and unstacked to write."""

    params: Params
    layers: Params
    kernel: Array  # [D V], without the padding of the vocabulary


class Said(NamedTuple):
    """What K steps of N slots say."""

    spoken: _slots.Spoken  # [K N]
    top_logp: Array  # [K N 20], nats; zeros where nobody asks
    top_id: Array  # [K N 20]


class Programs(NamedTuple):
    """Functions to jit; those of a state give the next one, which may take its memory."""

    first: Callable[..., State]  # (weights, tokens [1 L], count, settings) -> a state of one slot
    enter: Callable[..., State]  # (state, weights, tokens [1 L], count, place, settings)
    again: Callable[..., State]  # (state, source, place, settings): what was just read in `source`, once more
    advance: Callable[..., tuple[State, Said]]  # (state, weights, kept [N]): others than `kept` are free from now on


def weights_of(own: Sampler, params: Params) -> Weights:
    """The weights of a policy, prepared once."""
    kernel = jax.jit(lambda params: own.model.unembed(params)[:, : own.model.config.vocab_size])(params)
    return Weights(params, jax.jit(own.model.unstack)(params), kernel)


def programs(own: Sampler, length: int, stride: int = STRIDE) -> Programs:
    """The programs for a policy whose slots hold `length` tokens each."""
    ends, model = jnp.asarray(own.ends, jnp.int32), own.model

    def job(weights: Weights, tokens: Array, valid: Array, keys: Array, options: Options, limit: Array) -> _slots.Job:
        room = length - tokens.shape[1]
        return _slots.Job(model, *weights, tokens, valid, keys, 1, room, ends, options, limit, ("raw_logp",))

    def first(weights: Weights, tokens: Array, count: Array, ask: Settings) -> State:
        valid = jnp.arange(tokens.shape[1])[None] < count  # padded on the right, which the reply overwrites
        slots = _slots.admit(job(weights, tokens, valid, key_of(ask)[None], ask.options, ask.limit), 0, 1)
        return State(slots, ask.options, ask.limit, ask.top)

    def put(state: State, one: State, place: Array) -> State:
        one = one._replace(slots=one.slots._replace(row=place[None]))
        into = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), place, 0)  # noqa: E731
        return jax.tree.map(into, state, one)

    def enter(state: State, weights: Weights, tokens: Array, count: Array, place: Array, ask: Settings) -> State:
        return put(state, first(weights, tokens, count, ask), place)

    def again(state: State, source: Array, place: Array, ask: Settings) -> State:
        read = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, source, 1), state.slots)
        slots = read._replace(key=key_of(ask)[None], live=ask.limit > 0)
        return put(state, State(slots, ask.options, ask.limit, ask.top), place)

    def advance(state: State, weights: Weights, kept: Array) -> tuple[State, Said]:
        N = len(kept)
        none = jnp.zeros((N, 0), jnp.int32)
        whole = job(weights, none, none.astype(bool), state.slots.key, state.options, state.limit)

        def one(slots: _slots.Slots, _: None) -> tuple[_slots.Slots, Said]:
            top = best(slots.hidden, weights.kernel, model.config.logit_softcap, (state.top & slots.live).any())
            slots, spoken = _slots.spoken(whole, slots)
            return slots, Said(spoken, *top)

        slots = state.slots._replace(live=state.slots.live & kept)
        slots, said = jax.lax.scan(one, slots, length=stride)
        return state._replace(slots=slots), said

    return Programs(first, enter, again, advance)


def key_of(ask: Settings) -> Array:
    """The data of a reply's key: that which `sample.row_keys` gives the row `number` under the seed."""
    return jax.random.key_data(jax.random.fold_in(jax.random.key(ask.seed), ask.number))


def best(hidden: Array, kernel: Array, softcap: float, wanted: Array) -> tuple[Array, Array]:
    """(log-probabilities [N 20], ids) of the most probable tokens, under the model's own distribution; zeros that cost
    nothing unless they are wanted."""
    shape = len(hidden), min(TOP, kernel.shape[1])

    def find() -> tuple[Array, Array]:
        logp, ids = jax.lax.top_k(jax.nn.log_softmax(output.logits(hidden, kernel, softcap=softcap)), shape[1])
        return logp, ids.astype(jnp.int32)

    return jax.lax.cond(wanted, find, lambda: (jnp.zeros(shape), jnp.zeros(shape, jnp.int32)))


def settings(ask: Ask, vocab_size: int) -> Settings:
    """The settings of a request, as arrays of one row on the host. No seed is the seed 0."""
    real = lambda x: np.full(1, x, np.float32)  # noqa: E731
    whole = lambda x: np.full(1, x, np.int32)  # noqa: E731
    names = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    given: dict[str, Any] = {name: real(getattr(ask, name)) for name in names}
    given |= {"top_k": whole(ask.top_k), "min_new_tokens": whole(ask.min_tokens)}
    given["logit_bias"] = bias = np.zeros((1, vocab_size), np.float32)
    for token, value in ask.logit_bias:
        bias[0, token] = value
    return Settings(
        Options(**given), whole(ask.max_tokens), np.full(1, ask.top), np.uint32(ask.seed or 0), np.int32(ask.number)
    )


def buckets(length: int) -> tuple[int, ...]:
    """The lengths that prompts are padded to: powers of two, and the whole of a slot."""
    sizes, size = [], SHORTEST
    while size < length:
        sizes.append(size)
        size *= 2
    return (*sizes, length)


def check(ask: Ask, length: int, vocab_size: int) -> None:
    """Raises Refused for a request that slots of `length` tokens cannot serve; the message begins with the setting."""
    require(len(ask.ids) > 0, "prompt is empty: expected one token or more; some words, or the ids of some")
    outside = next((i for i in ask.ids if not 0 <= i < vocab_size), 0)
    require(
        outside == 0,
        f"prompt has the token id {outside}: expected ids from 0 to {vocab_size - 1}, this model's vocabulary",
    )
    room = length - len(ask.ids)
    if room < 1:
        raise TooLong(
            f"prompt has {len(ask.ids)} tokens: expected at most {length - 1}, since a prompt and its reply have "
            f"{length} tokens here; shorten it, or start with a larger --max-length if the model allows it"
        )
    if ask.max_tokens > room:
        raise TooLong(
            f"max_tokens = {ask.max_tokens} after a prompt of {len(ask.ids)} tokens: expected at most {room}, since "
            f"the two have {length} tokens here; lower max_tokens or shorten the prompt"
        )
    for name, fits, expected in RANGES:
        require(fits(getattr(ask, name)), f"{name} = {getattr(ask, name)!r}: expected {expected}")
    outside = next((i for i, _ in ask.logit_bias if not 0 <= i < vocab_size), 0)
    require(
        outside == 0, f"logit_bias of the token id {outside}: expected ids from 0 to {vocab_size - 1}, the vocabulary"
    )


def _finite(x: int | float, low: int | float, high: int | float = float("inf")) -> bool:
    return low <= x <= high and x < float("inf")  # nan is neither


RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    *((name, *options.RANGES[name]) for name in ("temperature", "min_p", "repetition_penalty")),
    ("max_tokens", lambda x: x >= 1, "1 or more"),
    ("min_tokens", lambda x: x >= 0, "0 or more"),
    ("top_k", lambda x: -1 <= x < 2**31, "a number of tokens, such as 50; 0 or -1 keeps all"),
    ("top_p", lambda x: _finite(x, 0, 1) and x > 0, "a mass in (0, 1], such as 0.95; 1 keeps all"),
    ("presence_penalty", lambda x: _finite(x, -2, 2), "a number in [-2, 2]; 0 is none"),
    ("frequency_penalty", lambda x: _finite(x, -2, 2), "a number in [-2, 2]; 0 is none"),
    ("logit_bias", lambda x: all(_finite(b, -100, 100) for _, b in x), "numbers in [-100, 100], by token id"),
    ("stop", lambda x: all(x), "one or more texts that are not empty, or none"),
    ("seed", lambda x: x is None or 0 <= x < SEEDS, f"a whole number from 0 to {SEEDS - 1}, or none"),
)
