"""Mesh, path rules -> NamedSharding: sharding is names and regular expressions in a config."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from alignax import host
from alignax.types import ByDevice, PerRow

Step = Callable[..., tuple[Any, Any]]  # (state, ...) -> (state, metrics)

# Axes of a mesh, by how far apart its devices may lie: copies between slices, copies, parameters cut and gathered for
# use, and the width of layers, whose sums are on the way of every layer.
AXES = ("replica", "data", "fsdp", "tensor")
ROWS = ("replica", "data", "fsdp")  # those over which the rows of a batch are split

# (regular expression over a parameter's path, mesh axes of its last dimensions). The first match wins; stacked layers
# have an axis of their own before these, which stays whole. What no rule names is copied to every device.
WIDTH = ("fsdp", "tensor")  # of one dimension, cut over both
RULES = (
    (r"layers/.*(q|k|v|gate|up)/kernel", ("fsdp", "tensor")),
    (r"layers/.*(o|down)/kernel", ("tensor", "fsdp")),
    (r"layers/.*(q|k|v|gate|up)/bias", ("tensor",)),
    (r"layers/experts/(gate|up)$", (None, "fsdp", "tensor")),
    (r"layers/experts/down$", (None, "tensor", "fsdp")),
    (r"(^|/)embed$", (WIDTH, None)),
    (r"(^|/)unembed$", (None, WIDTH)),
)


def make_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the named axes, in the order of `AXES`; one size may be -1: the devices that the others leave.

    Devices keep their order, which is that of their processes and, on a pod, of its slices: those of the last axis are
    neighbours, and the rows of a process lie together. Raises ValueError for names that are none of `AXES`, when the
    sizes do not multiply to the number of devices, and for one that is none.
    """
    grid = np.array(host.devices() if devices is None else devices)
    sizes = {name: axes[name] for name in AXES if name in axes}
    free = [name for name, size in sizes.items() if size == -1]
    if unknown := [name for name in axes if name not in AXES]:
        raise ValueError(f"mesh.{unknown[0]} is no axis: expected {', '.join(AXES)}")
    if wrong := [name for name, size in sizes.items() if size < 1 and size != -1]:
        raise ValueError(f"mesh.{wrong[0]} = {sizes[wrong[0]]}: expected a number of devices, or -1 for all others")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) == 1 and grid.size % fixed == 0:
        sizes[free[0]] = grid.size // fixed
    if len(free) > 1 or math.prod(sizes.values()) != grid.size:
        raise ValueError(
            f"mesh {dict(axes)} does not fit {grid.size} devices: the sizes must multiply to it, "
            "and at most one may be -1 (filled in)"
        )
    return Mesh(grid.reshape(tuple(sizes.values())), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def rows_of_several(mesh: Mesh) -> bool:
    """Whether some rows of a batch would be made by more than one process: each makes its own, and no others."""
    apart = [i for i, name in enumerate(mesh.axis_names) if name not in ROWS]
    rows = np.moveaxis(mesh.devices, apart, range(-len(apart), 0)).reshape(row_shards(mesh), -1)
    return any(len({device.process_index for device in row}) > 1 for row in rows)


def row_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of a mesh that split rows."""
    return tuple(name for name in mesh.axis_names if name in ROWS)


def parts(mesh: Mesh, axes: Sequence[str]) -> int:
    """How many parts a dimension is cut into that lies over these axes, as far as the mesh has them."""
    return math.prod(mesh.shape.get(name, 1) for name in axes)


def row_shards(mesh: Mesh) -> int:
    """How many parts the rows of a batch are split into."""
    return parts(mesh, ROWS)


def shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, tuple]] = RULES) -> Any:
    """A NamedSharding for each leaf of a tree of arrays or shapes, from the rules.

    An axis whose mesh size does not divide the dimension is left whole, so that small models run on large meshes.
    """

    def place(path, leaf):
        name = path_name(path)
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), ())
        if len(spec) > len(leaf.shape):
            spec = ()  # a statistic that shares a parameter's name: factored optimizer states, for example
        whole = (None,) * (len(leaf.shape) - len(spec)) if spec else ()
        fits = [_fitting(axes, size, mesh) for axes, size in zip(spec, leaf.shape[len(whole) :])]
        return NamedSharding(mesh, P(*whole, *fits))

    return jax.tree_util.tree_map_with_path(place, tree)


def _fitting(axes: str | tuple[str, ...] | None, size: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    """Those of a dimension's axes that the mesh has and that divide it together; None where there is none."""
    there = tuple(name for name in ((axes,) if isinstance(axes, str) else axes or ()) if name in mesh.shape)
    if not there or size % parts(mesh, there):
        return None
    return there[0] if len(there) == 1 else there


def path_name(path: tuple) -> str:
    """'decoder/layers/q/kernel' from a key path."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows spread over the axes that split them: data and fully-sharded-parameter parallelism both split the batch."""
    return NamedSharding(mesh, P(row_axes(mesh)))


def rows(mesh: Mesh) -> Callable[[Any], Any]:
    """A constraint for `decoder`: the rows of an activation stay split as those of the batch are, where they divide."""
    split, cut = batch_sharding(mesh), row_shards(mesh)
    keep = lambda x: x.shape[0] % cut or bool(_taken())  # noqa: E731
    return lambda x: x if keep(x) else jax.lax.with_sharding_constraint(x, split)


def by_device(mesh: Mesh) -> ByDevice:
    """Of a function of arrays one that every device runs on its own rows, where they divide.

    What it takes by name is whole on every device: a sharded tree is gathered before it begins. For kernels, which the
    compiler does not cut into parts by itself. So rows are split over all axes, those of the layers' width too; or as
    in a batch, where they do not divide over all. Within `by_rows` they are split over what is left.
    """
    return lambda f: _split(f, mesh, mesh.axis_names)


def by_rows(mesh: Mesh) -> ByDevice:
    """Of a function of arrays one that the devices of each row run on their own rows, where they divide.

    For loops in which other devices have nothing to say, sampling for one. What it takes by name is gathered over the
    axes that split rows before it begins, and stays cut over those of the layers' width, over which the compiler cuts
    the work as well: there the weights need not fit on one device.
    """
    axes = row_axes(mesh) if mesh.size > row_shards(mesh) else mesh.axis_names
    return lambda f: _split(f, mesh, axes)


def _split(f: PerRow, mesh: Mesh, axes: tuple[str, ...]) -> PerRow:
    def run(*arrays, **whole):
        left = tuple(name for name in axes if name not in _taken())
        if parts(mesh, left) == 1:
            return f(*arrays, **whole)
        own = tuple(name for name in left if name in ROWS)
        over = (some for some in (left, own) if len(arrays[0]) % parts(mesh, some) == 0)
        spec = P(next(over, ()) or None)
        on_rows = lambda arrays, whole: f(*arrays, **whole)  # noqa: E731
        where = None if _taken() else mesh  # within another it has to be that one's
        specs = {"in_specs": (spec, P()), "out_specs": spec}
        split = jax.shard_map(on_rows, mesh=where, **specs, axis_names=set(left), check_vma=False)
        return split(arrays, whole)

    return run


def _taken() -> set[str]:
    """The axes over whose devices what is traced is split already."""
    here = jax.sharding.get_abstract_mesh()
    return {name for name, kind in zip(here.axis_names, here.axis_types, strict=True) if kind == AxisType.Manual}


def jit_step(step: Step, state: Any, **options: Any) -> Step:
    """`step(state, ...) -> (state, metrics)` jitted, with the state donated and put back where it was.

    Left to itself the compiler may put the new state elsewhere, and the second call would compile again.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(where, None), **options)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Places the rows that this process made; together the processes hold the global batch.

    Raises ValueError when a global batch does not divide over the devices that split rows.
    """
    sharding, processes, cut = batch_sharding(mesh), host.count(), row_shards(mesh)
    for leaf in jax.tree.leaves(batch):
        if (len(leaf) * processes) % cut:
            raise ValueError(
                f"a batch of {len(leaf) * processes} rows does not divide over {cut} devices: "
                f"make it a multiple of {cut}, or use fewer devices (config.mesh)"
            )
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)
