"""Memory of a training step by attention kernel and remat policy on a TPU, without one; and times of attention here.

Command: python benchmarks/attention.py --topology v5e:4x4 [--shape llama-1B] [--length 4096] [--kernels xla splash]
Needs:   the TPU compiler (pip install -e '.[plan]'; its log on stderr complains of no TPU, a compile takes minutes);
         without --topology nothing but JAX.

With --topology, each row is one SFT step (AdamW, bf16 activations), rows and parameters cut over all chips (mesh: 2
data, the rest fsdp), compiled for them and not run. Columns, per chip: temporary memory (GB) of the chip and of its
host; compile (seconds); what the program holds of [.., T, T] (MB, the largest; 0: none). A program that the chip has
no memory for says what it would need. Without --topology: milliseconds of value and gradient of the XLA form on this
machine's device, by what is asked of it (the least of the repeats; variants take turns).
"""

import argparse
import dataclasses
import importlib.util
import math
import os
import re
import sys
import time

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from alignax import forward, sharding
from alignax.losses.sft import sft
from alignax.models.config import ModelConfig
from alignax.models.kernels import attender
from alignax.models.presets import llama
from alignax.stages.parents import on_mesh, sharded_shapes
from alignax.train.optimizer import adamw
from alignax.train.state import new_state
from alignax.train.step import make_step
from alignax.types import Layout

ONE_B = dict(dim=2048, layers=16, heads=32, kv_heads=8, head_dim=64, ffn=8192)
MIXED = dict(pattern=("sliding", "full"), window=1024, attention_softcap=50.0)  # as Gemma 2 asks
SHAPES = {
    "llama-1B": llama(vocab_size=128256, **ONE_B),
    "mixed-1B": dataclasses.replace(llama(vocab_size=128256, **ONE_B), **MIXED),
}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}


def squares(program: str, length: int) -> float:
    """MB of the largest array in a compiled program that has two axes of `length`."""
    found = re.findall(rf"\b({'|'.join(BYTES)})\[((?:\d+,)*{length},(?:\d+,)*{length}(?:,\d+)*)\]", program)
    return max((BYTES[kind] * math.prod(map(int, axes.split(","))) / 1e6 for kind, axes in found), default=0.0)


def step_on(config: ModelConfig, mesh, length: int, rows: int) -> dict:
    """The columns of one training step, compiled for the mesh."""
    model, optimizer = on_mesh(config, mesh), adamw(total_steps=100)
    objective = lambda p, _, b: {"loss": (1.0, sft(forward.demo(model, p, b)))}  # noqa: E731
    state = jax.eval_shape(lambda: new_state(model.init(jax.random.key(0)), optimizer))
    state, split = sharded_shapes(state, mesh), sharding.batch_sharding(mesh)
    array = lambda kind: jax.ShapeDtypeStruct((rows * mesh.size, length), kind, sharding=split)  # noqa: E731
    batch, begun = {"tokens": array("int32"), "valid": array("bool"), "mask": array("bool")}, time.perf_counter()
    lowered = sharding.jit_step(make_step(objective, optimizer), state).lower(state, batch, {})
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needs = re.search(r"\(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", str(error))
        if needs is None:
            raise
        return {"chip_gb": f"{needs[1]}: more than the {needs[2]} there are"}
    memory = program.memory_analysis()
    return {
        "chip_gb": memory.temp_size_in_bytes / 1e9,
        "host_gb": memory.host_temp_size_in_bytes / 1e9,
        "compile_s": time.perf_counter() - begun,
        "square_mb": squares(program.as_text(), length),
    }


def on_topology(args: argparse.Namespace) -> list[dict]:
    """The rows of the table of a TPU topology."""
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit("--topology needs the TPU compiler, libtpu, which is not installed: pip install -e '.[plan]'")
    config = SHAPES[args.shape]
    if args.length in (config.dim, config.ffn):
        raise SystemExit(f"--length {args.length}: a width of {args.shape}; no [T, T] could be told from [T, width]")
    jax.config.update("jax_platforms", "cpu")  # programs are compiled for TPUs and not run
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no TPU to be asked what it is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    mesh, found = sharding.make_mesh({"data": 2, "fsdp": -1}, devices), []
    for kernel in args.kernels:
        for remat in args.remat:
            row = {"shape": args.shape, "T": args.length, "kernel": kernel, "remat": remat}
            how = dataclasses.replace(config, attention=kernel, remat=remat, dtype="bfloat16")
            found.append(row | step_on(how, mesh, args.length, args.rows))
            print(found[-1], file=sys.stderr, flush=True)  # a compile takes minutes
    return found


def here(args: argparse.Namespace) -> list[dict]:
    """The rows of the table of this machine: attention alone, of 8 query and 4 key heads of 64 numbers."""
    B, T, keys = args.rows, args.length, jax.random.split(jax.random.key(0), 3)
    heads = [jax.random.normal(key, (B, T, n, 64)) for key, n in zip(keys, (8, 4, 4), strict=True)]
    place = jnp.tile(jnp.arange(T, dtype=jnp.int32), (B, 1))
    one, two = Layout(place * 0 + 1, None, place), Layout(1 + place // (T // 2), None, place % (T // 2))
    asked = {
        "causal": ({}, one),
        "window T/8": ({"pattern": ("sliding",), "window": T // 8}, one),
        "soft cap": ({"attention_softcap": 50.0}, one),
        "two documents": ({}, two),
        "branches": ({}, two._replace(branch=place % 3)),
    }
    programs = {name: plain(changes).lower(*heads, rows).compile() for name, (changes, rows) in asked.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(args.repeats + 1):
        for name, program in programs.items():
            begun = time.perf_counter()
            jax.block_until_ready(program(*heads, asked[name][1]))
            times[name].append(time.perf_counter() - begun)
    temporary = {name: program.memory_analysis().temp_size_in_bytes / 1e9 for name, program in programs.items()}
    return [{"form": name, "T": T, "ms": 1e3 * min(times[name][1:]), "gb": temporary[name]} for name in programs]


def plain(changes: dict):
    """The jitted gradient of the XLA form by queries, keys and values."""
    config = ModelConfig(vocab_size=64, heads=8, kv_heads=4, head_dim=64, attention="xla", **changes)

    def score(q, k, v, rows):
        attend = attender(config, "xla", rows, packed=True, by_device=lambda f: f)
        return jnp.sum(jnp.square(attend(q, k, v, jnp.int32(0))))

    return jax.jit(jax.grad(score, (0, 1, 2)))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="", help="TPU type and shape, v5e:4x4 for example; empty: this machine")
    parser.add_argument("--shape", default="llama-1B", choices=list(SHAPES))
    parser.add_argument("--length", type=int, default=0, help="T, tokens per row (default 4096; on this machine 1024)")
    parser.add_argument("--rows", type=int, default=1, help="per chip (default 1)")
    parser.add_argument("--kernels", nargs="*", default=["xla", "splash"])
    parser.add_argument("--remat", nargs="*", default=["none", "dots", "attention", "offload", "full"])
    parser.add_argument("--repeats", type=int, default=5, help="timed runs on this machine (default 5)")
    args = parser.parse_args()
    args.length = args.length or (4096 if args.topology else 1024)
    rows = on_topology(args) if args.topology else here(args)
    table = Table(*max(rows, key=len), title=f"{args.topology or jax.devices()[0].device_kind}, jax {jax.__version__}")
    for row in rows:
        table.add_row(*(f"{v:,.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
