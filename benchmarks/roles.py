"""Memory of PPO: four full copies of a model, against adapters and heads on one frozen base.

Command: python benchmarks/roles.py [--shapes llama-30M] [--rank 16] [--rollout] [--write benchmarks/results/roles.json]

Policy, reference, reward model and critic have one shape. "copies" is the online stage without `lora_args`: policy and
critic learn all their parameters. "one base" is the stage with them. Columns, in MB: `model` is one decoder; `held` is
what lies on the device between two iterations, train state and frozen parameters, each array once; `live` is that
again, as `jax.live_arrays()` counts buffers before and after an iteration has run ("-": planned from shapes, never
allocated); `args` and `temp` are arguments and temporaries of the compiled iteration (its outputs lie where the donated
state was). `models` = held / model.

--rollout also measures what an adapter costs the sampler: seconds (median, and fastest) and temporary MB of a rollout
with no adapter, with one beside its kernels (what the stage does), and with one worked into them once per rollout; and
how far the sampler's log-probabilities are from the learner's (root mean square, nats per token).
"""

import argparse
import dataclasses
import gc
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import alignax
from alignax import forward, lora
from alignax.log import replace_file
from alignax.models.decoder import decoder
from alignax.models.presets import llama
from alignax.sampling.sample import row_keys, sample
from alignax.sampling.sampler import Sampler
from alignax.stages import online, parents, programs, roles
from alignax.train import online as loop
from alignax.train.algorithm import Actors
from alignax.types import Model

# shape -> (model, rows, prompt tokens, completion tokens, whether it is run as well as planned)
SHAPES = {
    "llama-30M": (llama(vocab_size=8192), 8, 64, 64, True),
    "llama-1.2B": (llama(vocab_size=128256, dim=2048, layers=16, heads=32, kv_heads=8, ffn=8192), 8, 64, 64, False),
}
KINDS = ("copies", "one base")


def settings(kind: str, rank: int, rows: int, new: int) -> online.Plan:
    """The online stage's plan of a kind."""
    c = online.get_config()
    c.init_from, c.reward_from, c.data = "policy", "reward", {"path": "prompts.jsonl"}  # names: nothing is read here
    c.batch_size, c.max_new_tokens, c.total_steps = rows, new, 2
    c.update_args = {"epochs": 2, "minibatches": 2}
    c.lora_args = {"rank": rank} if kind == "one base" else {}
    return online.plan(c)


def start(plan: online.Plan, model: Model) -> tuple[Any, dict]:
    """(state, frozen) of random models in all four roles, as `roles.load` makes them of the folders of stages."""
    make = lambda seed: parents.init_params(model, jax.random.key(seed), scalar=seed > 0)  # noqa: E731
    policy, judge = make(0), make(1)
    learns, values, still = policy, judge, {}
    if plan.lora_args:  # not by `parents.learner`, which looks at numbers: of the larger shape there are none
        adapter = lambda seed: lora.init(jax.random.key(seed), policy, **plan.lora_args)  # noqa: E731
        learns, values = {"lora": adapter(2)}, {"lora": adapter(3), "scalar": judge["scalar"]}
        judge, beneath = policy | values, {"decoder": policy["decoder"]}
        still = {"base": {"policy": beneath, "critic": beneath}}
    frozen = {"reference": policy, "reward": {"reward": judge}} | still
    return loop.start(plan.algorithm, learns, values, 0), frozen


def measure(shape: str, kind: str, rank: int) -> dict:
    """One row of the table."""
    config, rows, prompt, new, runs = SHAPES[shape]
    plan, model, tree = settings(kind, rank, rows, new), decoder(config), {}
    never = (config.padded_vocab,)  # no end of sequence: every row at full length
    actors, score = Actors(Sampler(model, new, never, 0), model), programs.on_device(plan.algorithm, {"reward": model})
    prompts = {"tokens": np.full((rows, prompt), 6, np.int32), "valid": np.ones((rows, prompt), bool)}
    prompts |= {"row": np.arange(rows, dtype=np.int32)}

    def build():
        state, frozen = start(plan, model)
        arrays, tree["of"] = roles.shared(frozen)
        return state, arrays

    before = live_bytes()
    state, arrays = jax.jit(build)() if runs else jax.eval_shape(build)
    whole = lambda state, arrays, batch: loop.iteration(  # noqa: E731
        plan.algorithm, actors, score, state, tree["of"](arrays), batch
    )
    program = jax.jit(whole, donate_argnums=0).lower(state, arrays, prompts).compile()
    memory, model_bytes = program.memory_analysis(), size(jax.eval_shape(model.init, jax.random.key(0)))
    row = {"shape": shape, "kind": kind, "model": model_bytes / 1e6, "held": size((state, arrays)) / 1e6, "live": None}
    if runs:
        found = [live_bytes() - before]
        state, _ = jax.block_until_ready(program(state, arrays, prompts))
        row["live"] = max(*found, live_bytes() - before) / 1e6
    row |= {"args": memory.argument_size_in_bytes / 1e6, "temp": memory.temp_size_in_bytes / 1e6}
    return row | {"models": row["held"] / row["model"]}


def size(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def live_bytes() -> int:
    """Bytes of all buffers on the device, each once: two arrays may be views of one."""
    gc.collect()
    return sum({x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays()}.values())


def rollouts(dtype: str, rank: int, repeats: int = 7) -> list[dict]:
    """Rollouts of the first shape with no adapter, with one apart, and with one merged first, timed in turn."""
    config, rows, prompt, new, _ = SHAPES["llama-30M"]
    model = decoder(dataclasses.replace(config, dtype=dtype))
    params = parents.init_params(model, jax.random.key(0), scalar=False)
    grown = lambda path, x: x + (0.01 if path[-1].key == "b" else 0.0)  # noqa: E731
    params |= {"lora": jax.tree_util.tree_map_with_path(grown, lora.init(jax.random.key(1), params, rank=rank))}
    tokens = jax.random.randint(jax.random.key(2), (rows, prompt), 6, config.vocab_size)
    keys, valid = row_keys(jax.random.key(3), jnp.arange(rows)), jnp.ones(tokens.shape, bool)
    options = {"capacity": new, "eos_ids": jnp.asarray([config.padded_vocab]), "pad_id": 0}
    plain_of = lambda p: {"decoder": p["decoder"]}  # noqa: E731
    ways = {"none": plain_of, "apart": lambda p: p, "merged": lora.merge}
    learn = jax.jit(lambda p, r: forward.token_statistics(model, p, r.tokens, r.valid, start=prompt).logp)
    runs, out = {}, []
    for how, way in ways.items():
        run = jax.jit(lambda p, way=way: sample(model, way(p), tokens, valid, keys, **options))
        runs[how] = run.lower(params).compile()
        got = runs[how](params)
        gap = learn(plain_of(params) if how == "none" else params, got) - got.old_logp
        row = {"dtype": dtype, "adapter": how, "temp": runs[how].memory_analysis().temp_size_in_bytes / 1e6}
        out.append(row | {"sampler - learner": float(jnp.sqrt(jnp.mean(jnp.square(gap), where=got.mask)))})
    seconds = {how: [] for how in ways}
    for how in repeats * [*ways]:
        begun = time.perf_counter()
        jax.block_until_ready(runs[how](params))
        seconds[how].append(time.perf_counter() - begun)
    return [row | {"median_s": statistics.median(s), "fastest_s": min(s)} for row, s in zip(out, seconds.values())]


def show(rows: list[dict], title: str) -> None:
    """Prints rows as a table."""
    table = Table(*(name for name in rows[0]), title=title)
    for row in rows:
        cell = lambda v: f"{v:,.4g}" if isinstance(v, float) and v < 100 else f"{v:,.0f}"  # noqa: E731
        table.add_row(*(v if isinstance(v, str) else "-" if v is None else cell(v) for v in row.values()))
    Console().print(table)


def main() -> None:
    """Measures, prints, and writes where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=["llama-30M"], choices=list(SHAPES))
    parser.add_argument("--rank", type=int, default=16, help="of the adapters (default 16)")
    parser.add_argument("--rollout", action="store_true", help="what an adapter costs the sampler, too")
    parser.add_argument("--write", type=Path, help="JSON file for the rows, with machine and versions")
    args = parser.parse_args()
    title = f"{jax.devices()[0].device_kind}, jax {jax.__version__}, rank {args.rank}"
    rows = [measure(shape, kind, args.rank) for shape in args.shapes for kind in KINDS]
    show(rows, f"PPO, MB: {title}")
    for copies, base in zip(rows[::2], rows[1::2], strict=True):
        share = base["held"] / copies["held"]
        print(f"{base['shape']}: one base holds {base['models']:.2f} models, {share:.1%} of four full copies")
    samples = []
    if args.rollout:
        samples = [row for dtype in ("float32", "bfloat16") for row in rollouts(dtype, args.rank)]
        show(samples, f"a rollout: {title}")
    if args.write:
        machine = {
            "device": jax.devices()[0].device_kind, "devices": jax.device_count(), "processor": platform.machine(),
            "python": platform.python_version(), "jax": jax.__version__, "alignax": alignax.__version__,
        }  # fmt: skip
        args.write.parent.mkdir(parents=True, exist_ok=True)
        rows = {"rank": args.rank, "rows": rows, "rollout": samples}
        replace_file(args.write, json.dumps({"machine": machine} | rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
