"""Rows of prompts and replies through a model: each prompt read once for its replies, and no padding behind these.

What a loss sees does not depend on how it was read: `forward` gives log-probabilities, values and scores by row.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from alignax.types import Layout, Model, Params

T = TypeVar("T")


class Read(NamedTuple):
    """The replies of rows [B T] as a model has read them: G rows of N tokens."""

    before: Float[Array, "G N D"]  # the state that each token is predicted from
    token: Int[Array, "G N"]
    last: Float[Array, "B D"]  # the state at the last token of each row
    placed: Callable[[Array], Array]  # [G N *A] -> [B T *A]: zeros where nothing was read


def read(
    model: Model,
    params: Params,
    tokens: Int[Array, "B T"],
    valid: Bool[Array, "B T"],
    *,
    start: int = 1,
    group: int = 1,
    room: int = 0,
) -> Read:
    """One pass over rows whose replies begin at `start`, at least 1; what comes before it is read and not asked for.

    With `group` > 1, every `group` neighbouring rows are replies to one prompt, which is padded on the left. It is read
    once: the replies branch from it, one after the other, without the padding between them, in one row of `start +
    room` tokens. Worth it where prompts are long, since attention computes a reply's scores with its neighbours too,
    and masks them. With `group` = 1, `room` leaves out the padding behind all replies. Room for all is 0; what has none
    is not read, so choose it with `fitted`. All three are static.
    """
    B, C = len(tokens), tokens.shape[1] - start
    room = room or group * C
    if group == 1:
        hidden_BND = model.apply(params, tokens[:, : start + room], valid[:, : start + room])[:, start - 1 :]
        last_B = room - jnp.argmax(valid[:, start - 1 : start + room][:, ::-1], axis=1)
        last_BD = jnp.take_along_axis(hidden_BND, last_B[:, None, None], axis=1)[:, 0]
        behind = lambda x: jnp.pad(x, ((0, 0), (start, C - room), *[(0, 0)] * (x.ndim - 2)))  # noqa: E731
        return Read(hidden_BND[:, :-1], tokens[:, start : start + room], last_BD, behind)
    # ---- the replies of a group one after the other: of each slot whose it is, and of each token its slot
    G, slot_N = B // group, jnp.arange(room, dtype=jnp.int32)
    length_GM = valid[:, start:].sum(1, dtype=jnp.int32).reshape(G, group)
    end_GM = jnp.cumsum(length_GM, axis=1)
    first_GM = end_GM - length_GM
    reply_GN = jnp.minimum((slot_N[None, :, None] >= end_GM[:, None]).sum(2, dtype=jnp.int32), group - 1)
    place_GN = slot_N[None] - jnp.take_along_axis(first_GM, reply_GN, axis=1)
    there_GN = slot_N[None] < end_GM[:, -1:]
    source_GN = reply_GN * C + jnp.minimum(place_GN, C - 1)
    token_GN = jnp.take_along_axis(tokens[:, start:].reshape(G, -1), source_GN, axis=1)
    prompts, prompt_GP = tokens[::group, :start], valid[::group, :start]
    place_GP = jnp.maximum(jnp.cumsum(prompt_GP, axis=1, dtype=jnp.int32) - 1, 0)
    join = lambda prompt, rest: jnp.concatenate([prompt, rest], axis=1)  # noqa: E731
    rows = Layout(
        document=join(prompt_GP, there_GN).astype(jnp.int32),
        branch=join(jnp.zeros_like(place_GP), 1 + reply_GN),
        position=join(place_GP, place_GP[:, -1:] + 1 + place_GN),
    )
    hidden_GRD = model.apply(params, join(prompts, token_GN), rows)
    prompt_G1D, own_GND = hidden_GRD[:, start - 1 : start], hidden_GRD[:, start:]
    before_GND = jnp.where((place_GN == 0)[..., None], prompt_G1D, hidden_GRD[:, start - 1 : -1])
    at_GM1 = jnp.clip(end_GM - 1, 0, room - 1)[..., None]
    last_GMD = jnp.where((length_GM > 0)[..., None], jnp.take_along_axis(own_GND, at_GM1, axis=1), prompt_G1D)

    def placed(x: Array) -> Array:
        c_11C, rest = jnp.arange(C, dtype=jnp.int32)[None, None], (1,) * (x.ndim - 2)
        slot_GS = jnp.minimum(first_GM[..., None] + c_11C, room - 1).reshape(G, -1)
        found = jnp.take_along_axis(x, slot_GS.reshape(*slot_GS.shape, *rest), axis=1)
        known = (c_11C < length_GM[..., None]).reshape(slot_GS.shape + rest)
        found = jnp.where(known, found, jnp.zeros((), x.dtype)).reshape(B, C, *x.shape[2:])
        return jnp.pad(found, ((0, 0), (start, 0), *[(0, 0)] * len(rest)))

    return Read(before_GND, token_GN, last_GMD.reshape(B, -1), placed)


def fitted(f: Callable[[int], T], rooms: Sequence[int], valid: Bool[Array, "B T"], *, start: int, group: int) -> T:
    """f(room), for the least of the growing `rooms` that holds the replies of every group; each is compiled."""
    if len(rooms) == 1:
        return f(rooms[0])
    reply_BC = valid[:, start:]
    length_B = jnp.max(jnp.where(reply_BC, jnp.arange(1, reply_BC.shape[1] + 1)[None], 0), axis=1)
    needed = length_B.reshape(-1, group).sum(1).max()
    return jax.lax.switch(jnp.searchsorted(jnp.asarray(rooms[:-1]), needed), [partial(f, room) for room in rooms])
