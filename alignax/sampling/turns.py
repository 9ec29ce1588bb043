"""Replies of several turns: what others say goes in between, and the policy goes on behind it.

The state is a batch of slots and what they have said. `advance` writes until each live row ends its turn or its room is
used; `observe` reads tokens that nobody chose, each row from its own place on, and writes them down with mask False. A
row's noise comes from its own key and the place of the token in its reply, as in `sample`: a reply of one turn is the
one that `sample` gives, and neighbours leave no trace.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int

from alignax.sampling import slots as _slots
from alignax.sampling.memory import sharing
from alignax.sampling.options import Options
from alignax.sampling.sample import check_prompts, rollout_of
from alignax.sampling.sampler import Sampler
from alignax.types import Params, Rollout

WIDTHS = (16, 64, 256)  # tokens that are read at once: a program each, whatever the length of an observation


class Asked(NamedTuple):
    """What is asked for: replies to P prompts, `group` to each, R = P * group rows."""

    tokens: Int[Array, "P L"]  # padded on the left
    valid: Bool[Array, "P L"]
    keys: Array  # [R], the data of keys


class Play(NamedTuple):
    """Replies that are being written, between two turns."""

    slots: _slots.Slots  # `t`: tokens of each reply so far, of whoever said them
    said: _slots.Said


class Programs(NamedTuple):
    """Compiled functions of the parameters, what is asked, the state, and the settings of sampling."""

    begin: Callable[..., Play]  # (params, asked, options)
    advance: Callable[..., Play]  # (params, asked, options, play): until no row is live
    observe: Callable[..., Play]  # (params, asked, options, play, ids [R C], valid [R C])
    resume: Callable[..., Play]  # (play, live [R]): these go on, where they have room
    widths: tuple[int, ...]  # the numbers of columns that `observe` is given


def programs(own: Sampler, group: int, whole: Callable[[Any], Params] = lambda params: params) -> Programs:
    """The programs for one policy. `whole` makes its parameters of what the programs get, inside of them."""
    model, ends = own.model, jnp.asarray(own.ends, jnp.int32)

    def job(params: Params, options: Options, tokens: Array, valid: Array, keys: Array) -> _slots.Job:
        layers, kernel = model.unstack(params), model.unembed(params)[:, : model.config.vocab_size]
        limit = jnp.full(len(keys), own.capacity, jnp.int32)
        return _slots.Job(
            model, params, layers, kernel, tokens, valid, keys, group, own.capacity, ends, options, limit, ()
        )

    def by_rows(f: Callable) -> Callable:
        def run(given: Any, asked: Asked, options: Options, *rows: Any) -> Play:
            act = lambda tokens, valid, keys, *rows, params, options: f(  # noqa: E731
                job(params, options, tokens, valid, keys), *rows
            )
            return model.by_rows(act)(*asked, *rows, params=model.cast(whole(given)), options=options)

        return jax.jit(run)

    def begin(job: _slots.Job) -> Play:
        P, R = len(job.tokens), len(job.limit)
        prompts = _slots.room_for_prompts(job) if model.join is not None and sharing(P, R, R) else None
        return Play(_slots.admit(job, 0, P, prompts), _slots.nothing(job, own.pad))

    def advance(job: _slots.Job, play: Play) -> Play:
        return Play(*_slots.play(job, *play, 0))

    def resume(play: Play, live: Array) -> Play:
        return play._replace(slots=play.slots._replace(live=live & (play.slots.t < own.capacity)))

    ring = bool({"sliding"} & {*getattr(model.config, "spans", ())})
    widths = tuple(width for width in WIDTHS if not ring or width <= _slots.WIDTH)
    return Programs(by_rows(begin), by_rows(advance), by_rows(observe), jax.jit(resume), widths)


def observe(job: _slots.Job, play: Play, ids: Int[Array, "R C"], valid: Bool[Array, "R C"]) -> Play:
    """Reads tokens, padded on the right, each row from its own place on; a row without any stays as it is.

    They are there, and nobody's choice: valid, with mask False and no log-probability.
    """
    slots, said = play
    place = slots.t[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
    place = jnp.where(valid, place, job.capacity)  # padding goes nowhere
    put = lambda x, new: x.at[slots.row[:, None], place].set(new, mode="drop")  # noqa: E731
    said = said._replace(tokens=put(said.tokens, ids), valid=put(said.valid, valid))
    return Play(_slots.read(job, slots, ids, valid), said)


def pieces(length: int, widths: tuple[int, ...]) -> list[int]:
    """The widths in which so many tokens are read: the widest while they fill it, then one that holds the rest."""
    whole, rest = divmod(length, widths[-1])
    return [widths[-1]] * whole + ([min(width for width in widths if width >= rest)] if rest else [])


def asked_for(tokens: Array, valid: Array, keys: Array) -> Asked:
    """Prompts and one key for each reply. Raises ValueError for prompts that are none."""
    check_prompts(tokens, valid)
    return Asked(tokens, valid, jax.random.key_data(keys))


def written(asked: Asked, play: Play) -> Rollout:
    """The replies behind their prompts; `finished` and `reason` are those of the last turn."""
    return rollout_of(asked.tokens, asked.valid, play.said)
