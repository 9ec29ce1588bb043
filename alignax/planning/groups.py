"""Which axes of a mesh a collective goes over, and how many bytes it sends."""

import functools
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from alignax.planning.text import Instruction, attribute, integers

_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")  # of a mesh axis: 'b', or 'b':(2)2

# Bytes that a device sends around a ring of n, for each byte of its operands.
SENT: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


def axes_of(op: Instruction, mesh_shape: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """The mesh axes in which the devices of a collective's groups differ, and the devices of a group.

    Device numbers are row-major places in the mesh. Raises ValueError for groups of devices that the mesh has not.
    """
    if op.opcode == "collective-permute":
        pairs = np.reshape(integers(attribute(op, r"source_target_pairs=\{([\d,{}]*)\}")), (-1, 2))
        return _differing(tuple(map(tuple, pairs.tolist())), tuple(mesh_shape.items())), 2
    listed = groups(attribute(op, r"replica_groups=(.*?)(?:, [a-z_]+=(?!\()|$)"), math.prod(mesh_shape.values()))
    return _differing(listed, tuple(mesh_shape.items())), max(map(len, listed))


@functools.lru_cache(maxsize=1024)
def groups(text: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """The groups of `replica_groups=`, in any of its forms; none are one group of all devices.

    {{0,1},{2,3}}; [16,4]<=[4,16]T(1,0): the numbers from 0 on, laid out as [4, 16], transposed, and cut into 16 groups
    of 4; mesh['a'=2,'b'=4] {'b'}: groups along b of a mesh of the compiler, whose devices may be in another order,
    device_ids=([4,2]T(1,0)), and whose axis may be cut: 'b':(2)2 are the 2 after the first 2 of it.
    """
    if iota := re.match(r"\[([\d,]+)\]<=(.*)", text):
        return _rows(_iota(iota[2]).reshape(integers(iota[1])))
    if text.startswith("mesh["):
        return _rows(_along(text))
    listed = [tuple(integers(group)) for group in re.findall(r"\{([\d,]+)\}", text)]
    return tuple(listed) or (tuple(range(devices)),)


def _iota(text: str) -> np.ndarray:
    """The numbers from 0 on, as [4,16]T(1,0) lays them out."""
    dims, _, order = text.partition("T")
    dims = integers(dims)
    numbers = np.arange(math.prod(dims)).reshape(dims)
    return numbers.transpose(integers(order)) if order else numbers


def _along(text: str) -> np.ndarray:
    """Of mesh['a'=2,'b'=4], device_ids=(...) {'a','b':(2)2} the groups, one a row."""
    mesh, _, chosen = text.rpartition("{")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    order = re.search(r"device_ids=\((.*)\)", mesh)
    if order is None:
        numbers = np.arange(math.prod(sizes.values()))
    else:
        numbers = _iota(order[1]) if order[1].startswith("[") else np.array(integers(order[1]))
    cut: dict[str, list[tuple[int, int]]] = {}
    for name, before, size in _PART.findall(chosen):
        cut.setdefault(name, []).append((int(before or 1), int(size or sizes[name])))
    dims, within = [], []
    for name, size in sizes.items():
        done = 1
        for before, part in sorted(cut.get(name, [])):
            within.append(len(dims) + 1)
            dims += [before // done, part]
            done = before * part
        dims.append(size // done)
    moved = np.moveaxis(numbers.reshape(dims), within, range(-len(within), 0))
    return moved.reshape(-1, math.prod(dims[i] for i in within))


def _rows(table: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, table.reshape(len(table), -1).tolist()))


@functools.lru_cache(maxsize=1024)
def _differing(listed: tuple[tuple[int, ...], ...], mesh_shape: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    names, sizes = zip(*mesh_shape)
    if (last := max(map(max, listed), default=0)) >= math.prod(sizes):
        raise ValueError(f"device {last} is not in mesh {dict(mesh_shape)}: expected the mesh that was compiled for")
    places = [np.stack(np.unravel_index(group, sizes)) for group in listed]  # each [axis, device]
    return tuple(name for i, name in enumerate(names) if any(len(set(place[i].tolist())) > 1 for place in places))
