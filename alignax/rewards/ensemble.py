"""Ensembles of reward models: members of one architecture, stacked and scored as one program.

An ensemble's parameters are {"shared", "own"}: one tree cut in two, with None where the other half has the leaf. What
is one array in all members, a decoder beneath their adapters for example, is shared and stands there once; the leaves
of "own" have an axis of the K members in front. A trunk with K heads needs none of this: its head scores [B K].
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from alignax import forward
from alignax.ops.checks import require
from alignax.types import Model, Params


def stacked(members: Sequence[Params]) -> Params:
    """The parameters of members, trees of one structure and of equal shapes, as those of an ensemble.

    Raises ValueError if they are not, or if all are the same arrays.
    """
    first, *others = members
    require(len(members) > 1, f"an ensemble of {len(members)}: expected 2 members or more")
    shapes = [jax.tree.map(jnp.shape, one) for one in members]
    require(all(one == shapes[0] for one in shapes), "an ensemble's members differ in the shapes of their parameters")
    same = jax.tree.map(lambda x, *more: all(one is x for one in more), first, *others)
    require(not all(jax.tree.leaves(same)), "an ensemble's members are all the same parameters: name different ones")
    shared = jax.tree.map(lambda one, x: x if one else None, same, first)
    own = [jax.tree.map(lambda one, x: None if one else x, same, member) for member in members]
    where = jax.tree.map(_with_members, own[0])
    stack = jax.jit(lambda *trees: jax.tree.map(lambda *x: jnp.stack(x), *trees), out_shardings=where)
    return {"shared": shared, "own": stack(*own)}


def _with_members(x: Any) -> Any:
    """Where a stacked array goes: cut as its members are, whole along their axis."""
    sharding = x.sharding
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def is_ensemble(params: Params) -> bool:
    """Whether parameters are an ensemble's."""
    return set(params) == {"shared", "own"}


def joined(shared: Params, own: Params) -> Params:
    """The tree of both halves: of one member, or, with the axis of the members, of all."""
    return jax.tree.map(lambda a, b: b if a is None else a, shared, own, is_leaf=lambda x: x is None)


def scores(
    model: Model, params: Params, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"], **rows: int
) -> Float[Array, "B K"]:
    """`forward.score` of each member."""
    one = lambda own: forward.score(model, joined(params["shared"], own), tokens, valid, **rows)  # noqa: E731
    return jax.vmap(one, out_axes=1)(params["own"])
