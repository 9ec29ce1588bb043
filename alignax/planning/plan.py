"""`alignax plan`: every program of a config compiled for devices that need not be there; what each takes and how long.

Memory is the compiler's own account. FLOPs, bytes and what goes over links are read from the compiled text, bodies of
loops counted as often as they run. The time is a roofline: the longest of products at the chip's peak, bytes at its
memory's bandwidth, and bytes over the busiest links at theirs, all three at once; real runs are slower.
"""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from alignax import host
from alignax.config import ConfigError, plain
from alignax.data.tokenizer import vocabulary
from alignax.log import replace_file
from alignax.manifest import read_manifest
from alignax.models.config import ModelConfig
from alignax.models.flops import param_count
from alignax.planning.chips import Topology
from alignax.planning.hlo import Costs, costs
from alignax.sharding import path_name
from alignax.stages import folder, parents, pipeline
from alignax.stages.plans import made, module_of, parents_of, value_at
from alignax.stages.shapes import Program, World

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# what lies in a device's memory, by how its path among a program's arguments begins
GROUPS = (
    (r"^state/(learner|policy|critic)/opt_state", "optimizer"),
    (r"^state/(learner|policy|critic)/params", "parameters"),
    (r"^state/(reference|ema)", "frozen"),
    (r"^frozen", "frozen"),
    (r"", "batch"),
)


class Forecast(NamedTuple):
    """One program on a topology; bytes and FLOPs are of one device."""

    step: str
    program: str
    arguments: dict[str, float]  # bytes: parameters, optimizer, frozen, batch
    temporaries: float  # bytes: activations, caches, gathered weights, results
    total: float  # bytes at the most
    memory: float  # that the chip has; inf where nobody knows
    costs: Costs | None  # None where the compiler would not compile what does not fit
    seconds: dict[str, float]  # by what bounds it: compute, memory, links
    mfu: float | None
    compile_s: float

    @property
    def fits(self) -> bool:
        return self.total <= self.memory


def forecasts(config: Any, there: Topology, model: str = "") -> Iterator[Forecast]:
    """A forecast of each program of each step. Raises ConfigError for a config that cannot run on the topology, and for
    what no step's plan knows, before anything is compiled.

    `model`: folder with the config.json of the parents that are not there.
    """
    memory = int(there.chip.memory) if there.chip else 2**62
    with host.as_if(there.devices, memory):
        found = programs(plain(config), model)
    for step, program, mesh in found:
        with host.as_if(there.devices, memory):
            made = forecast(step, program, mesh, there)
        yield made


def programs(config: dict, model: str) -> list[tuple[str, Program, Mesh]]:
    """(step, program, mesh) of all that a config compiles."""
    steps, known, found = pipeline.planned(config) if "steps" in config else {"": made(config)}, {}, []
    for name, plan in steps.items():
        own = config[name] if name else config
        module, title = module_of(own), name or own["stage"]
        architectures, missing = models(module, own, plan, known, model)
        if first := architectures.get("policy") or next(iter(architectures.values()), None) or imports(own, model):
            known[name] = first
        if hasattr(module, "programs_of"):
            mesh = parents.get_mesh(plan.mesh)
            world = World(mesh, architectures, missing)
            found += [(title, program, mesh) for program in module.programs_of(plan, world)]
            folder.say(f"{title}: {', '.join(f'{role}: {described(one)}' for role, one in architectures.items())}")
        else:
            folder.say(f"{title}: nothing of a stage {own['stage']!r} is planned yet")
    return found


def imports(config: Mapping[str, Any], other: str) -> ModelConfig | None:
    """The architecture that an import will bring: of its folder, if it is there, else of `other`."""
    if config["stage"] != "imported":
        return None
    there = (Path(config["path"]) / "config.json").is_file()
    return architecture_of(config["path"] if there else other) if there or other else None


def models(
    module: Any, config: Mapping[str, Any], plan: Any, known: Mapping[str, ModelConfig], other: str
) -> tuple[dict[str, ModelConfig], dict[str, str]]:
    """(the architecture of each parent: of an earlier step, of a finished folder, else of the folder `other`; what the
    config says of those that nobody knows)."""
    found, missing = {}, {}
    for role, parent in parents_of(module.STAGE, config).items():
        path = value_at(config, parent.key)
        if not isinstance(path, str) or not path:
            continue
        if path.startswith("@") and path[1:].split("/")[0] in known:
            one = known[path[1:].split("/")[0]]
        elif (Path(path) / "manifest.json").is_file():
            architecture = read_manifest(Path(path))["architecture"]
            one = ModelConfig(**architecture) if architecture else None
        else:
            one = architecture_of(other) if other else None
        if not one:
            missing[role] = f"config.{parent.key} = {path!r}"
        else:
            found[role] = ModelConfig(**one.architecture(), **getattr(plan, "compute", {}))
    if "policy" not in found and getattr(plan, "model", None):
        size = architecture_of(other).vocab_size if other else vocabulary(parents.named_tokenizer(plan.tokenizer))
        found["policy"] = ModelConfig(**plan.model(vocab_size=size).architecture(), **plan.compute)
    return found, missing


def described(config: ModelConfig) -> str:
    """'32 layers of 4096, 8.03 billion parameters'."""
    count = param_count(config)
    return f"{config.layers} layers of {config.dim}, {count / 1e9:,.3g} billion parameters"


def architecture_of(path: str) -> ModelConfig:
    """The architecture of a folder with a config.json of Hugging Face's format. Raises ConfigError."""
    from alignax.models.hf.config import from_hf, read_config

    try:
        family, stated = read_config(path)
        return from_hf(family, stated)
    except ValueError as error:
        raise ConfigError(f"--model={path}: {error}") from None


def forecast(step: str, program: Program, mesh: Mesh, there: Topology) -> Forecast:
    """What one program takes on the devices of the mesh."""
    arguments, twice = by_group(program.arguments)
    begun = time.perf_counter()
    memory = there.chip.memory if there.chip else math.inf
    try:
        compiled = program.function.lower(*program.arguments.values()).compile()
    except jax.errors.JaxRuntimeError as error:
        used = over(str(error), sum(arguments.values()))
        if used is None:
            raise
        seconds, rest = time.perf_counter() - begun, used - sum(arguments.values())
        return Forecast(step, program.name, arguments, rest, used, memory, None, {}, None, seconds)
    seconds, account = time.perf_counter() - begun, compiled.memory_analysis()
    total = account.argument_size_in_bytes + account.output_size_in_bytes - account.alias_size_in_bytes
    total += account.temp_size_in_bytes + account.generated_code_size_in_bytes - twice
    found = costs(compiled.as_text(), dict(mesh.shape), trips=program.trips)
    bound = roofline(found, mesh, there)
    mfu = None
    if there.chip and bound:
        mfu = program.flops / mesh.size / (max(bound.values()) * there.chip.flops)
    rest = total - sum(arguments.values())
    return Forecast(step, program.name, arguments, rest, total, memory, found, bound, mfu, seconds)


def over(message: str, arguments: float) -> float | None:
    """Bytes that the compiler says a program would need, of one that does not fit, beside so many of its arguments.

    None for any other message.
    """
    if found := re.search(r"Used ([\d.]+)([KMGT])i?B? of ([\d.]+)([KMGT])i?B? hbm", message):
        return float(found[1]) * UNITS[found[2]]
    found = re.search(r"required for HLO temporaries \(([\d.]+)([KMGT])\) exceeds", message)
    return float(found[1]) * UNITS[found[2]] + arguments if found else None


def by_group(arguments: dict[str, Any]) -> tuple[dict[str, float], float]:
    """(bytes on one device of a program's arguments, by what they are; of those that are an argument before).

    An array that is two arguments lies in memory once.
    """
    out, seen, twice = {name: 0.0 for _, name in GROUPS}, set(), 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(arguments):
        name = next(name for pattern, name in GROUPS if re.search(pattern, path_name(path)))
        size = float(math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize)
        if id(leaf) in seen:
            twice += size
        else:
            out[name] += size
        seen.add(id(leaf))
    return out, twice


def roofline(found: Costs, mesh: Mesh, there: Topology) -> dict[str, float]:
    """Seconds that each resource is busy: products, memory, and the links, of whose torus axes the busiest counts."""
    chip = there.chip
    if chip is None:
        return {}
    busy = dict.fromkeys(range(chip.axes), 0.0)
    for axes, size in found.collectives.items():
        speeds = lanes(mesh.devices, tuple(mesh.axis_names.index(name) for name in axes), there)
        for axis, speed in speeds.items():  # the more axes a group lies over, the less goes over each
            busy[axis] += size / len(speeds) / speed
    return {"compute": found.flops / chip.flops, "memory": found.bytes / chip.bandwidth, "links": max(busy.values())}


def lanes(devices: np.ndarray, along: tuple[int, ...], there: Topology) -> dict[int, float]:
    """{torus axis: bytes/s of a device} over which the devices of a group lie, which differ in these axes of the mesh.

    A ring sends both ways at once; a line, and a part of a ring, one way.
    """
    assert (chip := there.chip) is not None
    group = devices[tuple(slice(None) if axis in along else 0 for axis in range(devices.ndim))].ravel()
    if not hasattr(group[0], "coords"):
        return {0: chip.link}
    coords = np.array([device.coords for device in group])
    spans = {axis: len(np.unique(coords[:, axis])) for axis in range(chip.axes)}
    ring = lambda axis: spans[axis] == there.shape[axis] > 2 and there.shape[axis] % chip.wraps == 0  # noqa: E731
    return {axis: chip.link * (2 if ring(axis) else 1) for axis in spans if spans[axis] > 1} or {0: chip.link}


def record(found: Forecast) -> dict[str, Any]:
    """A forecast as JSON."""
    out = found._asdict() | {"fits": found.fits}
    if found.costs:
        out["costs"] = found.costs._asdict() | {
            "collectives": {"+".join(k): v for k, v in found.costs.collectives.items()}
        }
    out["memory"] = None if math.isinf(found.memory) else found.memory
    return out


def table(found: list[Forecast], there: Topology) -> Any:
    """What people look at."""
    import rich.box
    from rich.table import Table

    title = f"{there.name}: {len(there.devices)} devices"
    if there.chip:
        title += f" of {there.chip.memory / 2**30:.0f} GiB, {there.chip.flops / 1e12:.0f} TFLOP/s"
    out = Table(title=title, box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=CAPTION, caption_justify="left")
    columns = ("step", "program", *dict(GROUPS).values(), "temporaries", "total", "fits", "TFLOP", "HBM", "links")
    for name in (*dict.fromkeys(columns), "ms", "bound by", "MFU", "compile s"):
        out.add_column(name, justify="left" if name in ("step", "program", "fits", "bound by") else "right")
    for one in found:
        sizes = [*one.arguments.values(), one.temporaries, one.total]
        fits = "-" if math.isinf(one.memory) else "yes" if one.fits else "[red]no[/]"
        row = [one.step, one.program, *map(shown, sizes), fits]
        if one.costs:
            sent = ", ".join(f"{'+'.join(axes)} {shown(size)}" for axes, size in one.costs.collectives.items())
            row += [f"{one.costs.flops / 1e12:,.3g}", shown(one.costs.bytes), sent or "-"]
        else:
            row += ["", "", ""]
        bound = max(one.seconds, key=lambda name: one.seconds[name]) if one.seconds else ""
        row += [f"{one.seconds[bound] * 1e3:,.3g}" if bound else "", bound]
        row += [f"{one.mfu:.0%}" if one.mfu is not None else "", f"{one.compile_s:.0f}"]
        out.add_row(*row)
    return out


CAPTION = (
    "Of one device and one step. Temporaries: activations, caches, gathered weights, results; HBM: read and written; "
    "links: sent, by mesh axes; ms: roofline, all resources busy at once; MFU: model FLOPs at that speed."
)
WIDTH = 200  # of the table, where nobody says how wide the terminal is


def shown(size: float | int) -> str:
    """Bytes for people."""
    unit = next((unit for unit in ("T", "G", "M") if size >= UNITS[unit]), "K")
    return f"{size / UNITS[unit]:,.3g} {unit}iB" if size else "0"


def command(args: Any, config: Any, there: Topology) -> int:
    """Prints the table, writes the JSON, of what was done if something stops it; 1 if something does not fit."""
    from rich.console import Console

    found, console = [], Console()
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)  # before all the work
        write(args.json, found, there)
    try:
        for one in forecasts(config, there, args.model):
            found.append(one)
            folder.say(f"{one.step} {one.program}: {shown(one.total)} a device, compiled in {one.compile_s:.0f} s")
    finally:
        if found:
            (console if console.is_terminal else Console(width=WIDTH)).print(table(found, there))
        if args.json:
            write(args.json, found, there)
    return int(not all(one.fits for one in found))


def write(path: str, found: list[Forecast], there: Topology) -> None:
    """The forecasts as a file."""
    records = {"topology": there.name, "devices": len(there.devices), "programs": [record(one) for one in found]}
    replace_file(Path(path), json.dumps(records, indent=1) + "\n")
