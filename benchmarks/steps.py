"""Speed and memory of one step of each stage: the harbour desk's model, and a 30M-parameter Llama shape.

Command: python benchmarks/steps.py [--steps 20] [--out benchmarks/results/steps-<machine>.json]

Every stage runs through the loop that trains it (batches made ahead, metrics one step late), on synthetic rows of
fixed length. Columns: median step (seconds), tokens per second (real tokens of the batch; for online, sampled and
prompt tokens, once per iteration however often they are used), compile (seconds, first call less a median step), peak
memory of the compiled program (arguments, temporaries and outputs, MB), host (median microseconds from the return of
one call to the next call: what the device would wait if it had nothing queued), and compiles after the first step,
which must be 0; faults are page faults per step. Compare within one run only: machines differ. What huge pages do
(`alignax run` asks for them, see main.py): the same command with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before it.
"""

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import alignax
from alignax import forward
from alignax.checkpoint import Steps
from alignax.data.loader import Loader
from alignax.log import Log, read_metrics, replace_file
from alignax.losses.bradley_terry import bradley_terry
from alignax.losses.dpo import dpo
from alignax.losses.sft import sft
from alignax.models.config import ModelConfig
from alignax.models.decoder import decoder, param_count
from alignax.models.presets import harbor, llama
from alignax.sampling.sampler import Sampler
from alignax.stages import online, parents, programs
from alignax.train import online as loop
from alignax.train.algorithm import Actors
from alignax.train.loop import fit
from alignax.train.optimizer import adamw
from alignax.train.state import new_state
from alignax.train.step import make_step

# shape -> (model, rows, prompt tokens, completion tokens)
SHAPES = {"harbor": (harbor(vocab_size=219), 32, 24, 24), "llama-30M": (llama(vocab_size=8192), 8, 64, 64)}


def sequences(config: ModelConfig, rows: int, prompt: int, completion: int, seed: int) -> dict:
    """Random tokens, a prompt and a completion in every row."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(6, config.vocab_size, (rows, prompt + completion)).astype(np.int32)
    valid = np.ones(tokens.shape, bool)
    return {"tokens": tokens, "valid": valid, "mask": valid & (np.arange(prompt + completion) >= prompt)}


def supervised(name: str, config: ModelConfig, rows: int, prompt: int, completion: int, total: int):
    """(state, step function, arrays, tokens per step, jitted step) of sft, reward or offline."""
    model, optimizer = decoder(config), adamw(total_steps=total)
    params = parents.init_params(model, jax.random.key(0), scalar=name == "reward")
    sides = [sequences(config, 4 * rows, prompt, completion, seed) for seed in (0, 1)]
    row = {"row": np.arange(4 * rows, dtype=np.int32)}
    pairs, tokens = {"chosen": sides[0], "rejected": sides[1]} | row, rows * (prompt + completion)
    objectives = {
        "sft": (lambda p, _, b: {"loss": (1.0, sft(forward.demo(model, p, b)))}, sides[0] | row, tokens),
        "reward": (lambda p, _, b: {"loss": (1.0, bradley_terry(forward.scored(model, p, b)))}, pairs, 2 * tokens),
        "offline": (lambda p, ref, b: {"loss": (1.0, dpo(forward.pair(model, p, ref, b)))}, pairs, 2 * tokens),
    }
    objective, arrays, tokens = objectives[name]
    frozen = jax.tree.map(lambda x: x + 0, params) if name == "offline" else ()
    jitted = jax.jit(make_step(objective, optimizer), donate_argnums=0)
    return new_state(params, optimizer), lambda s, b: jitted(s, b, frozen), arrays, tokens, (jitted, frozen)


def rl(config: ModelConfig, rows: int, prompt: int, completion: int, total: int):
    """The same of a whole PPO iteration: four models of one shape, two epochs of two minibatches."""
    c = online.get_config()
    c.init_from, c.reward_from, c.data = "policy", "reward", {"path": "prompts.jsonl"}  # names: nothing is read here
    c.max_new_tokens, c.batch_size, c.total_steps = completion, rows, total
    c.update_args = {"epochs": 2, "minibatches": 2}
    algorithm, model = online.plan(c).algorithm, decoder(config)
    policy, critic, proxy = (parents.init_params(model, jax.random.key(seed), scalar=seed > 0) for seed in range(3))
    never = (config.padded_vocab,)  # no end of sequence: every row at full length
    actors, score = (
        Actors(Sampler(model, completion, never, 0), model),
        programs.on_device(algorithm, {"reward": model}),
    )
    frozen = {"reference": jax.tree.map(lambda x: x + 0, policy), "reward": {"reward": proxy}}
    jitted = jax.jit(lambda s, b, f: loop.iteration(algorithm, actors, score, s, f, b), donate_argnums=0)
    state = loop.start(algorithm, policy, critic, 0)
    arrays = sequences(config, 4 * rows, prompt, 0, 0) | {"row": np.arange(4 * rows, dtype=np.int32)}
    del arrays["mask"]
    return state, lambda s, b: jitted(s, b, frozen), arrays, rows * (prompt + completion), (jitted, frozen)


def measure(stage: str, shape: str, steps: int) -> dict:
    """One row of the table."""
    config, rows, prompt, completion = SHAPES[shape]
    total = steps + 1
    build = rl if stage == "online" else lambda *args: supervised(stage, *args)
    state, step_fn, arrays, tokens, (jitted, frozen) = build(config, rows, prompt, completion, total)
    loader = Loader(arrays, rows, 0)
    memory = jitted.lower(state, loader.batch(0), frozen).compile().memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    peak -= memory.alias_size_in_bytes
    batch, begun = jax.device_put(loader.batch(0)), time.perf_counter()
    jax.block_until_ready(jitted(jax.tree.map(lambda x: x + 0, state), batch, frozen))
    first, compiled = time.perf_counter() - begun, jitted._cache_size()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with tempfile.TemporaryDirectory() as folder, Steps(Path(folder) / "steps") as saver:
        with Log(folder, total, title=f"{shape} {stage}", quiet=True) as log:
            fit(
                state, step_fn, loader.batch, total_steps=total, steps=saver, log=log, put=jax.device_put,
                save_every_steps=10 * total,
            )  # fmt: skip
        times = [row for row in read_metrics(Path(folder) / "metrics.jsonl") if row["split"] == "train"][1:]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    step = statistics.median(row["time/step"] for row in times)
    return {
        "shape": shape,
        "stage": stage,
        "parameters": param_count(state.policy.params if stage == "online" else state.learner.params),
        "rows": rows,
        "step_s": step,
        "tokens_per_s": tokens / step,
        "compile_s": max(first - step, 0.0),
        "peak_mb": peak / 1e6,
        "host_us": 1e6 * statistics.median(row["time/host"] for row in times),
        "faults": faults // total,
        "recompiles": jitted._cache_size() - compiled,
    }


def main() -> None:
    """Measures and prints; exits 1 on a recompile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default 20)")
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--stages", nargs="*", default=["sft", "reward", "offline", "online"])
    parser.add_argument("--out", type=Path, help="JSON file for the rows, with machine and versions")
    args = parser.parse_args()
    rows = [measure(stage, shape, args.steps) for shape in args.shapes for stage in args.stages]
    table = Table(*(name for name in rows[0]), title=f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    for row in rows:
        table.add_row(*(f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    if args.out:
        machine = {
            "device": jax.devices()[0].device_kind, "devices": jax.device_count(), "processor": platform.machine(),
            "python": platform.python_version(), "jax": jax.__version__, "alignax": alignax.__version__,
        }  # fmt: skip
        args.out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(args.out, json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    raise SystemExit(any(row["recompiles"] for row in rows))


if __name__ == "__main__":
    main()
