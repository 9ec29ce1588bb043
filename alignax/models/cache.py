"""Keys and values of the tokens that a model has read, laid out for one query at a time.

A layer's keys are blocks [B c K H W], its values [B c K W H]: c tiles of W = 64 slots each, a token in one slot. Both
products of attention then read runs of memory, where keys as [B K S H] took several times as long on a CPU
(benchmarks/sampling.py). There are a few blocks, so that attention can leave out those in which no row sees anything:
what is not yet written, the padding before all prompts, what a window has passed. A layer with a window has slots for
the window and a tile more, and its tokens go round in them; the position of each says what a query sees.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

TILE = 64


def empty(
    batch: int, length: int, kv_heads: int, head_dim: int, dtype: jnp.dtype, blocks: int, width: int
) -> tuple[list, list]:
    """(keys, values) of one layer with room for `length` tokens a row, in at most so many blocks of tiles."""
    tiles = -(-length // width)
    each = -(-tiles // blocks)
    counts = [min(each, tiles - first) for first in range(0, tiles, each)]
    keys = [jnp.zeros((batch, c, kv_heads, head_dim, width), dtype) for c in counts]
    return keys, [x.swapaxes(3, 4) for x in keys]


def join(prompts: dict, prompt_B: Int[Array, " B"], own: dict) -> dict:
    """A cache of one row for each of `own`, in which its prompt's blocks stand before its own."""
    rows = lambda blocks: [block[prompt_B] for block in blocks]  # noqa: E731
    joined = {n: [[*rows(p), *o] for p, o in zip(prompts[n], own[n], strict=True)] for n in ("k", "v")}
    at = {kind: jnp.concatenate([x[prompt_B], own["at"][kind]], axis=1) for kind, x in prompts["at"].items()}
    first = {kind: x + prompts["at"][kind].shape[1] for kind, x in own["first"].items()}
    return own | joined | {"at": at, "first": first}


def newest(slots: int, index_B: Int[Array, " B"], length: int) -> Callable[..., Array]:
    """(x [B T ...], fill=0) -> [B slots ...]: of the first `index` of T = `length` tokens the last, number i in slot i
    mod `slots`."""
    if length <= slots:
        room = lambda x: ((0, 0), (0, slots - length), *[(0, 0)] * (x.ndim - 2))  # noqa: E731
        return lambda x, fill=0: jnp.pad(x, room(x), constant_values=fill)
    end_B1 = index_B[:, None] - 1
    token_BS = end_B1 - (end_B1 - jnp.arange(slots)[None]) % slots

    def put(x: Array, fill: int = 0) -> Array:
        column = lambda y: y.reshape(*token_BS.shape, *[1] * (x.ndim - 2))  # noqa: E731
        found = jnp.take_along_axis(x, column(jnp.maximum(token_BS, 0)), axis=1)
        return jnp.where(column(token_BS >= 0), found, jnp.asarray(fill, x.dtype))

    return put


def slots(keys: Sequence[Array]) -> int:
    """Room of a row, in tokens: a whole number of tiles."""
    return sum(k.shape[1] * k.shape[4] for k in keys)


def filled(
    keys: Sequence[Array], k_BSKH: Float[Array, "B S K H"], v_BSKH: Float[Array, "B S K H"]
) -> tuple[list, list]:
    """(keys, values) in blocks as those of `keys`."""
    tiles = lambda x: x.reshape(len(x), -1, keys[0].shape[4], *x.shape[2:])  # noqa: E731
    k, v, out, first = tiles(k_BSKH), tiles(v_BSKH), ([], []), 0  # [B c W K H]
    for block in keys:
        part = slice(first, first + block.shape[1])
        out[0].append(k[:, part].transpose(0, 1, 3, 4, 2))
        out[1].append(v[:, part].transpose(0, 1, 3, 2, 4))
        first = part.stop
    return out


def put(
    keys: Sequence[Array], values: Sequence[Array], k_BCKH: Float[Array, "B C K H"], v_BCKH: Float[Array, "B C K H"],
    slot_BC: Int[Array, "B C"],
) -> tuple[list, list]:  # fmt: skip
    """The blocks with new keys and values in these slots; one beyond the room is dropped."""
    width, first, out = keys[0].shape[4], 0, ([], [])
    rows_B1, tile_BC, place_BC = jnp.arange(len(slot_BC))[:, None], slot_BC // width, slot_BC % width
    for k, v in zip(keys, values, strict=True):
        here = (tile_BC >= first) & (tile_BC < first + k.shape[1])
        at = jnp.where(here, tile_BC - first, k.shape[1])  # a negative index would count from the end
        out[0].append(k.at[rows_B1, at, :, :, place_BC].set(k_BCKH, mode="drop"))
        out[1].append(v.at[rows_B1, at, :, place_BC].set(v_BCKH, mode="drop"))
        first += k.shape[1]
    return out
