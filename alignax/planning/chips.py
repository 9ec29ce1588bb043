"""What chips can do, as their makers publish it, and the topologies that a plan may be made for.

TPU: the system architecture pages of Google Cloud TPU, v4 to v6e. GPU: NVIDIA's data sheets of the SXM modules, dense
bf16, with the memory that the driver leaves of theirs.
"""

import math
import os
import re
from typing import Any, NamedTuple

from alignax.config import ConfigError
from alignax.models.flops import PEAK


class Chip(NamedTuple):
    """A device of JAX."""

    flops: float  # dense bf16 FLOP/s
    memory: float  # bytes
    bandwidth: float  # of it, bytes/s
    link: float  # bytes/s that a device sends one way along one axis of the torus, or of all NVLinks
    axes: int  # of the torus; 1 where every device reaches every other
    wraps: int  # an axis of a multiple of it is a ring, of any other number a line; 1: always


CHIPS = {
    "v4": Chip(PEAK["TPU v4"], 32 * 2**30, 1228e9, 45e9, 3, 4),
    "v5e": Chip(PEAK["TPU v5e"], 16 * 2**30, 819e9, 45e9, 2, 16),
    "v5p": Chip(PEAK["TPU v5p"], 95 * 2**30, 2765e9, 90e9, 3, 4),
    "v6e": Chip(PEAK["TPU v6e"], 32 * 2**30, 1640e9, 90e9, 2, 16),
    "a100": Chip(PEAK["NVIDIA A100-SXM4-80GB"], 79 * 2**30, 2039e9, 300e9, 1, 1),
    "h100": Chip(PEAK["NVIDIA H100 80GB HBM3"], 79 * 2**30, 3350e9, 450e9, 1, 1),
    "h200": Chip(PEAK["NVIDIA H200"], 139 * 2**30, 4800e9, 450e9, 1, 1),
    "b200": Chip(PEAK["NVIDIA B200"], 178 * 2**30, 8000e9, 900e9, 1, 1),
}
NODE = 8  # GPUs that NVLink joins: what lies between nodes is in no data sheet of theirs
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
    shape: tuple[int, ...] = ()


def shape_of(name: str) -> tuple[str, tuple[int, ...]]:
    """("v5p", (4, 4, 4)) of "v5p:4x4x4". Raises ConfigError for what is no topology."""
    kind, _, shape = name.partition(":")
    if not re.fullmatch(r"\d+(x\d+)*", shape) or kind not in (*CHIPS, "cpu") or 0 in map(int, shape.split("x")):
        raise ConfigError(f"--topology={name}: there is no such one; {EXPECTED}")
    sizes = tuple(map(int, shape.split("x")))
    if kind in TPUS and len(sizes) != CHIPS[kind].axes:
        axes = "x".join(["4"] * CHIPS[kind].axes)
        raise ConfigError(f"--topology={name}: {kind} has {CHIPS[kind].axes} axes, such as {kind}:{axes}")
    if kind not in (*TPUS, "cpu") and math.prod(sizes) > NODE:
        raise ConfigError(f"--topology={name}: expected at most {NODE} GPUs, those of a node")
    return kind, sizes


def topology(name: str) -> Topology:
    """The devices of a topology; those of a TPU are libtpu's, all others are the CPU's.

    To be called before anything else of JAX. Raises ConfigError for a name that is none, and where libtpu, the compiler
    for TPU, is not installed or does not know the shape.
    """
    kind, sizes = shape_of(name)
    import jax

    jax.config.update("jax_platforms", "cpu")  # no device of this machine has a part in it
    if kind not in TPUS:
        jax.config.update("jax_num_cpu_devices", math.prod(sizes))
        return Topology(name, jax.devices("cpu"), CHIPS.get(kind), sizes)
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
        if "lockfile" in first:
            raise ConfigError(f"--topology={name}: another process has libtpu, which serves one at a time") from None
        raise ConfigError(f"--topology={name}: libtpu does not know it ({first}); {EXPECTED}") from None
    return Topology(name, list(found.devices), CHIPS[kind], sizes)
