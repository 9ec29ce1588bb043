"""What chips can do, as their makers publish it, and the topologies that a plan may be made for.

TPU: the system architecture pages of Google Cloud TPU, v4 to v6e; a link is one direction of one torus axis times two,
since a ring sends both ways at once. GPU: NVIDIA's data sheets of the SXM modules, dense bf16; the link is NVLink.
"""

import math
import os
import re
from typing import Any, NamedTuple

from alignax.config import ConfigError


class Chip(NamedTuple):
    """A device of JAX."""

    flops: float  # dense bf16 FLOP/s
    memory: float  # bytes
    bandwidth: float  # of it, bytes/s
    link: float  # bytes/s that a device sends in a ring of neighbours
    rings: int  # torus axes, of which each has such a ring


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 90e9, 3),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 90e9, 2),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 180e9, 3),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 180e9, 2),
    "a100": Chip(312e12, 80e9, 2039e9, 300e9, 1),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9, 1),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9, 1),
    "b200": Chip(2250e12, 180e9, 8000e9, 900e9, 1),
}
TPUS = ("v4", "v5e", "v5p", "v6e")
EXPECTED = (
    "expected a TPU and its shape, such as v5p:4x4x4, v5e:16x16, v6e:16x16 or v4:4x4x4; a GPU by its data sheet and "
    "how many, a100:8, h100:8, h200:8, b200:8; or cpu:8"
)


class Topology(NamedTuple):
    """Devices to plan for."""

    name: str
    devices: list[Any]
    chip: Chip | None  # None: nobody knows what the machine's own CPU can do


def shape_of(name: str) -> tuple[str, tuple[int, ...]]:
    """("v5p", (4, 4, 4)) of "v5p:4x4x4". Raises ConfigError for what is no topology."""
    kind, _, shape = name.partition(":")
    if not re.fullmatch(r"\d+(x\d+)*", shape) or kind not in (*CHIPS, "cpu") or 0 in map(int, shape.split("x")):
        raise ConfigError(f"--topology={name}: there is no such one; {EXPECTED}")
    sizes = tuple(map(int, shape.split("x")))
    if kind in TPUS and len(sizes) != CHIPS[kind].rings:
        axes = "x".join(["4"] * CHIPS[kind].rings)
        raise ConfigError(f"--topology={name}: {kind} has {CHIPS[kind].rings} axes, such as {kind}:{axes}")
    return kind, sizes


def topology(name: str) -> Topology:
    """The devices of a topology; those of a TPU are libtpu's, all others are the CPU's.

    To be called before anything else of JAX. Raises ConfigError for a name that is none, and where libtpu, the compiler
    for TPU, is not installed or does not know the shape.
    """
    kind, sizes = shape_of(name)
    import jax

    if kind not in TPUS:
        jax.config.update("jax_num_cpu_devices", math.prod(sizes))
        return Topology(name, jax.devices("cpu"), CHIPS.get(kind))
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # it is no machine of Google's: nobody answers
    try:
        import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
        from jax.experimental import topologies
    except ImportError:
        raise ConfigError(
            f"--topology={name}: libtpu, which compiles for TPU without one, is not installed; pip install "
            "'alignax[plan]', or plan for cpu:8"
        ) from None
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # of XLA's own kinds
        first = str(error).splitlines()[0]
        raise ConfigError(f"--topology={name}: libtpu does not know it ({first}); {EXPECTED}") from None
    return Topology(name, list(found.devices), CHIPS[kind])
