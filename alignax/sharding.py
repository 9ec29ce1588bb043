"""Mesh, path rules -> NamedSharding: sharding is names and regular expressions in a config."""

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

# (regular expression over a parameter's path, mesh axis of each dimension). The first match wins; stacked layers
# carry their own leading axis, which stays whole. What no rule names is copied to every device.
RULES = (
    (r"layers/.*(q|k|v|gate|up)/kernel", (None, "fsdp", None)),
    (r"layers/.*(o|down)/kernel", (None, None, "fsdp")),
    (r"layers/experts/(gate|up)$", (None, None, "fsdp", None)),
    (r"layers/experts/down$", (None, None, None, "fsdp")),
    (r"(^|/)embed$", ("fsdp", None)),
    (r"(^|/)unembed$", (None, "fsdp")),
)


def make_mesh(axes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the named axes in the order given; one size may be -1: the devices that the others leave.

    Raises ValueError when the sizes do not multiply to the number of devices, and for one that is none.
    """
    grid = np.array(jax.devices() if devices is None else devices)
    sizes = dict(axes)
    free = [name for name, size in sizes.items() if size == -1]
    if wrong := [name for name, size in sizes.items() if size < 1 and size != -1]:
        raise ValueError(f"mesh.{wrong[0]} = {sizes[wrong[0]]}: expected a number of devices, or -1 for all others")
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) == 1 and grid.size % fixed == 0:
        sizes[free[0]] = grid.size // fixed
    if len(free) > 1 or np.prod(list(sizes.values())) != grid.size:
        raise ValueError(
            f"mesh {dict(axes)} does not fit {grid.size} devices: the sizes must multiply to it, "
            "and at most one may be -1 (filled in)"
        )
    return Mesh(grid.reshape(tuple(sizes.values())), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def shardings(tree: Any, mesh: Mesh, rules: Sequence[tuple[str, tuple]] = RULES) -> Any:
    """A NamedSharding for each leaf of a tree of arrays or shapes, from the rules.

    An axis whose mesh size does not divide the dimension is left whole, so that small models run on large meshes.
    """

    def place(path, leaf):
        name = path_name(path)
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), ())
        if len(spec) > len(leaf.shape):
            spec = ()  # a statistic that shares a parameter's name: factored optimizer states, for example
        fits = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(spec, leaf.shape)]
        return NamedSharding(mesh, P(*fits))

    return jax.tree_util.tree_map_with_path(place, tree)


def path_name(path: tuple) -> str:
    """'decoder/layers/q/kernel' from a key path."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows spread over every axis of the mesh: data and fully-sharded-parameter parallelism both split the batch."""
    return NamedSharding(mesh, P(mesh.axis_names))


def rows(mesh: Mesh) -> Callable[[Any], Any]:
    """A constraint for `decoder`: the rows of an activation stay split as those of the batch are, where they divide."""
    split = batch_sharding(mesh)
    keep = lambda x: x.shape[0] % mesh.size or within_device()  # noqa: E731
    return lambda x: x if keep(x) else jax.lax.with_sharding_constraint(x, split)


def by_device(mesh: Mesh) -> ByDevice:
    """Of a function of arrays one that every device runs on its own rows, where they divide.

    What it takes by name is whole on every device: a sharded tree is gathered before it begins. For kernels, which the
    compiler does not cut into parts by itself, and for loops in which devices have nothing to say to each other.
    """

    def cut(f: PerRow) -> PerRow:
        def run(*arrays, **whole):
            if mesh.size == 1 or within_device():
                return f(*arrays, **whole)
            spec = P() if len(arrays[0]) % mesh.size else P(mesh.axis_names)
            on_rows = lambda arrays, whole: f(*arrays, **whole)  # noqa: E731
            specs = {"in_specs": (spec, P()), "out_specs": spec}
            return jax.shard_map(on_rows, mesh=mesh, **specs, check_vma=False)(arrays, whole)

        return run

    return cut


def within_device() -> bool:
    """Whether what is traced runs on one device's rows: there is nothing left to split."""
    return AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types


def jit_step(step: Step, state: Any) -> Step:
    """`step(state, ...) -> (state, metrics)` jitted, with the state donated and put back where it was.

    Left to itself the compiler may put the new state elsewhere, and the second call would compile again.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(where, None))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Places the rows that this process made; together the processes hold the global batch.

    Raises ValueError when a global batch does not divide over the devices.
    """
    sharding, processes = batch_sharding(mesh), host.count()
    for leaf in jax.tree.leaves(batch):
        if (len(leaf) * processes) % mesh.size:
            raise ValueError(
                f"a batch of {len(leaf) * processes} rows does not divide over {mesh.size} devices: "
                f"make it a multiple of {mesh.size}, or use fewer devices (config.mesh)"
            )
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)
