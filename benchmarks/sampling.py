"""What a decode step is made of, one piece at a time: the layouts of a cache, and the ways to draw a token.

Command: python benchmarks/sampling.py [--rows 256] [--slots 384] [--vocab 8192] [--repeats 5] [--out F]

Pieces: the scores of one query per row against keys as [B K S H] and in tiles (`models.cache`), these also in less than
float32, and the average of values in tiles, for 8 layers of 4 heads of keys; a token by `sampling.choose`, and by
Gumbel noise and an argmax; the filters top-k and top-p, and a sort, which they do without; `Model.extend` of a 29M
Llama shape by 1, 4 and 8 tokens of 1, 8 and 64 rows, the price of speculative decoding (benchmarks/speculation.py).
Columns: milliseconds, the least of the repeats, and of what reads a cache GB/s. Compare within one run only: machines
differ.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from alignax.log import replace_file
from alignax.models import cache
from alignax.models.decoder import decoder
from alignax.models.presets import llama
from alignax.ops.filters import top_k, top_p
from alignax.sampling.choose import choose, noise
from alignax.types import Model, Params

LAYERS, K, G, H = 8, 4, 2, 64
ROWS, READ = (1, 8, 64), (1, 4, 8)


def least_ms(f: Callable, *args, repeats: int) -> float:
    """Milliseconds of a compiled call."""
    program, times = jax.jit(f), []
    jax.block_until_ready(program(*args))
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def attention(B: int, S: int, repeats: int) -> dict[str, tuple[float, float]]:
    """{piece: (ms, GB/s)} of reading a cache."""
    q, plain = jnp.ones((B, K, G, H)), [jnp.ones((B, K, S, H)) for _ in range(LAYERS)]
    layers = [cache.empty(B, S, K, H, jnp.dtype("float32"), 1, cache.TILE) for _ in range(LAYERS)]
    keys, values = [k + 1 for (k,), _ in layers], [v + 1 for _, (v,) in layers]
    c = keys[0].shape[1]
    each, weight = jnp.broadcast_to(q[:, None], (B, c, K, G, H)), jnp.ones((B, c, K, G, S // c))
    read = lambda q, ks: [jnp.einsum("bckgh,bckhw->bckgw", q, k.astype(q.dtype)) for k in ks]  # noqa: E731
    made = {
        "scores, keys [B K S H]": (lambda q, ks: [jnp.einsum("bkgh,bksh->bkgs", q, k) for k in ks], q, plain),
        "scores, keys in tiles": (read, each, keys),
        "scores, keys in tiles, bfloat16": (read, each, [k.astype(jnp.bfloat16) for k in keys]),
        "scores, keys in tiles, int8": (read, each, [k.astype(jnp.int8) for k in keys]),
        "average, values in tiles": (
            lambda w, vs: [jnp.einsum("bckgw,bckwh->bckgh", w, v) for v in vs],
            weight,
            values,
        ),
    }
    size = {name: sum(x.nbytes for x in call[2]) / 1e9 for name, call in made.items()}
    found = {name: least_ms(*call, repeats=repeats) for name, call in made.items()}
    return {name: (ms, size[name] / ms * 1e3) for name, ms in found.items()}


def drawing(B: int, V: int, repeats: int) -> dict[str, tuple[float, None]]:
    """{piece: (ms, None)} of drawing a token."""
    logits, keys = jax.random.normal(jax.random.key(0), (B, V)), jax.random.split(jax.random.key(1), B)

    def gumbel(x, keys):
        token = jnp.argmax(x + jax.vmap(lambda k: jax.random.gumbel(k, (V,)))(keys), axis=-1)
        return token, jnp.take_along_axis(jax.nn.log_softmax(x), token[:, None], axis=1)

    made = {
        "a token by choose": (
            lambda x, keys: choose(x, noise(keys, jnp.zeros(B, jnp.int32)), jnp.zeros(B, bool)), logits, keys
        ),
        "a token by Gumbel noise": (gumbel, logits, keys),
        "top-k": (lambda x: top_k(x, 50), logits),
        "top-p": (lambda x: top_p(x, 0.9), logits),
        "a sort": (lambda x: jnp.sort(x, axis=-1), logits),
    }  # fmt: skip
    return {name: (least_ms(*call, repeats=repeats), None) for name, call in made.items()}


def steps(model: Model, params: Params, slots: int, repeats: int) -> dict[tuple[int, int], float]:
    """{(rows, C): ms} of reading C more tokens a row into a cache that is half full, logits included."""
    layers, kernel, found = model.unstack(params), model.unembed(params), {}
    for B in ROWS:
        state = model.init_cache(B, slots)
        ones = jnp.ones((B, slots // 2), jnp.int32)
        state = jax.jit(model.prefill)(params, ones, ones > 0, state)[1]
        for C in READ:
            ones = jnp.ones((B, C), jnp.int32)

            def step(layers, ones, state):
                hidden, after = model.extend(layers, ones, ones > 0, state)
                return hidden @ kernel, after

            found[B, C] = least_ms(step, layers, ones, state, repeats=repeats)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--slots", type=int, default=384, help="tokens of a row in the cache, whole tiles of 64")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for everything, with machine and versions")
    args = parser.parse_args()
    if args.slots % cache.TILE:
        parser.error(f"--slots {args.slots}: expected a multiple of {cache.TILE}, such as 384")
    found = attention(args.rows, args.slots, args.repeats) | drawing(args.rows, args.vocab, args.repeats)
    model = decoder(llama(vocab_size=args.vocab))
    made = steps(model, jax.jit(model.init)(jax.random.key(0)), args.slots, args.repeats)
    found |= {f"{rows} rows read {C}": (ms, None) for (rows, C), ms in made.items()}
    table = Table("piece", "ms", "GB/s", title=f"{platform.machine()}, {os.cpu_count()} cores")
    for name, (ms, rate) in found.items():
        table.add_row(name, f"{ms:,.2f}", f"{rate:.1f}" if rate else "")
    Console(width=100).print(table)
    if args.out:
        rows = [{"piece": name, "ms": ms, "gb_per_s": rate} for name, (ms, rate) in found.items()]
        asked = {"rows": args.rows, "slots": args.slots, "vocab": args.vocab, "repeats": args.repeats}
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}
        replace_file(args.out, json.dumps({"machine": machine, "settings": asked, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
