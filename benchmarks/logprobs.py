"""Speed and memory of token log-probabilities: the plain formula against the walk over chunks of the vocabulary.

Command: python benchmarks/logprobs.py [--repeats 7] [--shapes f32 bf16] [--out benchmarks/results/logprobs-x.json]

Each row is one compiled program of value and gradient (log-probabilities, and entropies or not, of `rows` tokens,
weighted and summed), timed in turn with the plain one of its shape. Columns: the least wall-clock and the least
processor time of the repeats (milliseconds; on a busy CPU the latter says more, on an accelerator nothing); plain /
this by either (above 1: faster than the plain formula); temporary memory of the compiled program (MB) and its share
of the plain one's; chunk / V, what that share may at best be. The plain program is the textbook one under `jax.grad`:
all the logits, a log-softmax, a gather. Of the four products of rows x D x V that the walk takes (the logits twice)
the plain one takes three: where the products are all that counts (large D), it can reach 3/4 of that speed, no more.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import alignax
from alignax.log import replace_file
from alignax.ops.logprobs import token_stats

# rows, D, V, dtype
SHAPES = {
    "narrow": (1024, 128, 32768, "float32"),
    "f32": (512, 512, 32768, "float32"),
    "bf16": (512, 512, 32768, "bfloat16"),
    "large-f32": (256, 512, 131072, "float32"),
    "large-bf16": (256, 512, 131072, "bfloat16"),
}
CHUNKS = (2048, 4096, 8192, 16384)


def plain(hidden, kernel, targets, entropy: bool):
    """The textbook form."""
    logp = jax.nn.log_softmax(jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32), axis=-1)
    found = jnp.take_along_axis(logp, targets[:, None], axis=-1)[:, 0]
    return (found, -jnp.sum(jnp.exp(logp) * logp, axis=-1)) if entropy else (found,)


def chunked(hidden, kernel, targets, chunk: int, entropy: bool):
    """The package's."""
    stats = token_stats(hidden, kernel, targets, vocab_size=kernel.shape[1], chunk=chunk)
    return (stats.logp, stats.entropy) if entropy else (stats.logp,)


def inputs(rows: int, D: int, V: int, dtype: str) -> tuple:
    """Hidden states, a kernel and targets."""
    rng = np.random.default_rng(0)
    hidden, kernel = (jnp.asarray(rng.normal(0, sd, shape), dtype) for sd, shape in ((1, (rows, D)), (D**-0.5, (D, V))))
    return hidden, kernel, jnp.asarray(rng.integers(0, V, rows), jnp.int32)


def compiled(f: Callable, arrays: tuple):
    """Value and gradient of a weighted sum of what `f` returns, with respect to hidden states and kernel."""
    weight = jnp.linspace(-1.0, 2.0, len(arrays[0]))
    score = lambda hidden, kernel, targets: sum(jnp.sum(x * weight) for x in f(hidden, kernel, targets))  # noqa: E731
    return jax.jit(jax.value_and_grad(score, (0, 1))).lower(*arrays).compile()


def fastest(programs: dict, arrays: tuple, repeats: int) -> dict[str, tuple[float, float]]:
    """Least (wall-clock, processor) seconds of each program; they take turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for repeat in range(repeats + 1):
        for name, program in programs.items():
            wall, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(program(*arrays))
            if repeat:  # the first is for warming up
                times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return {name: (min(wall for wall, _ in values), min(cpu for _, cpu in values)) for name, values in times.items()}


def measure(rows: int, D: int, V: int, dtype: str, repeats: int) -> list[dict]:
    """The rows of the table of one shape."""
    arrays = inputs(rows, D, V, dtype)
    found = []
    for entropy in (True, False):
        forms = {"plain": lambda h, k, t, e=entropy: plain(h, k, t, e)}
        forms |= {f"chunk {c}": lambda h, k, t, e=entropy, c=c: chunked(h, k, t, c, e) for c in CHUNKS if c < V}
        programs = {name: compiled(f, arrays) for name, f in forms.items()}
        seconds = fastest(programs, arrays, repeats)
        memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in programs.items()}
        for name in programs:
            form = f"{name}, entropy" if entropy else name
            chunk = int(name.split()[1]) if " " in name else V
            found.append(
                {
                    "rows": rows, "D": D, "V": V, "dtype": dtype, "form": form,
                    "ms": 1e3 * seconds[name][0], "ratio": seconds["plain"][0] / seconds[name][0],
                    "cpu_ms": 1e3 * seconds[name][1], "cpu_ratio": seconds["plain"][1] / seconds[name][1],
                    "temporary_mb": memory[name] / 1e6, "share": memory[name] / memory["plain"], "chunk/V": chunk / V,
                }
            )  # fmt: skip
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each program (default 7)")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--out", type=Path, help="JSON file for the rows, with machine and versions")
    args = parser.parse_args()
    rows = [row for name in args.shapes for row in measure(*SHAPES[name], args.repeats)]
    table = Table(*rows[0], title=f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for row in rows:
        table.add_row(*(f"{v:,.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=130).print(table)
    if args.out:
        machine = {
            "device": jax.devices()[0].device_kind, "processor": platform.machine(), "jax": jax.__version__,
            "python": platform.python_version(), "alignax": alignax.__version__,
        }  # fmt: skip
        args.out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(args.out, json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
