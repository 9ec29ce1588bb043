"""What speculative decoding by prompt look-up would gain: tokens that a step says, over what the step costs.

Command: python benchmarks/speculation.py --folder CHECKPOINT --data hh_harmless.jsonl.gz [--prompts 32] [--cap 256]
         [--temperatures 0 0.7 1] [--repeats 5] [--out F]

A step reads the last token and C - 1 guesses: what followed the last three, two or one tokens where they stood before,
in prompt or reply. A guess is right where it is the token that the sampler draws there anyway, by the noise of its row
and place: replies would stay the same token for token. So what is accepted can be counted in replies of the plain
sampler, and only the price of longer steps has to be measured: `Model.extend` by C tokens over that by one, for 1, 8
and 64 rows, drawing left out, which C tokens cost C times. Columns: tokens a step, and the gain (below 1: a loss).
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from alignax.data.arrays import pad
from alignax.log import replace_file
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys, sample

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what the benchmarks share
from benchmarks.policies import load  # noqa: E402
from benchmarks.rollouts import real_prompts  # noqa: E402
from benchmarks.sampling import READ, ROWS, steps  # noqa: E402

LONGEST = 3  # tokens that are looked up


def guess(ids: list[int], count: int) -> list[int]:
    """What followed the last tokens where they last stood before: the longest of 3, 2, 1 that stood there."""
    for n in range(min(LONGEST, len(ids) - 1), 0, -1):
        for first in range(len(ids) - n - 1, -1, -1):
            if ids[first : first + n] == ids[-n:]:
                return ids[first + n : first + n + count]
    return []


def spoken(prompt: list[int], reply: list[int], count: int) -> int:
    """Steps that say a reply if each guesses `count` tokens."""
    done = number = 0
    while done < len(reply):
        guessed = guess(prompt + reply[: done + 1], count)  # the step draws a token, and then checks what follows it
        right = 0
        while right < len(guessed) and reply[done + 1 + right : done + 2 + right] == [guessed[right]]:
            right += 1
        done, number = done + 1 + right, number + 1
    return number


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a model in Hugging Face's form, with its tokenizer")
    parser.add_argument("--data", type=Path, required=True, help="dialogues in HH-RLHF's form")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--cap", type=int, default=256)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7, 1.0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file for everything, with machine and versions")
    args = parser.parse_args()
    model, params = load(str(args.folder))
    prompts, ends = real_prompts(args.prompts, args.data, str(args.folder))
    tokens, valid = map(jnp.asarray, pad(prompts, max(map(len, prompts)), 0, left=True))
    fixed = {"capacity": args.cap, "eos_ids": jnp.asarray(ends), "pad_id": 0}
    keys = row_keys(jax.random.key(0), jnp.arange(len(prompts)))
    draw = jax.jit(
        lambda params, t: sample(model, params, tokens, valid, keys, options=Options(temperature=t), **fixed)
    )
    ms = steps(model, params, -(-(tokens.shape[1] + args.cap) // 64) * 64, args.repeats)
    rows = []
    for temperature in args.temperatures:
        found = draw(params, jnp.float32(temperature))
        replies = [np.asarray(x)[m].tolist() for x, m in zip(np.asarray(found.tokens), np.asarray(found.mask))]
        for C in READ[1:]:
            each = sum(map(len, replies)) / sum(spoken(p, r, C - 1) for p, r in zip(prompts, replies, strict=True))
            row = {
                "temperature": temperature,
                "C": C,
                "mean_length": np.mean([*map(len, replies)]),
                "tokens_a_step": each,
            }
            rows.append(row | {f"gain_{B}_rows": each * ms[B, 1] / ms[B, C] for B in ROWS})
    table = Table(*rows[0], title=f"{platform.machine()}, {os.cpu_count()} cores")
    for row in rows:
        table.add_row(*(f"{x:.3g}" for x in row.values()))
    Console(width=110).print(table)
    if args.out:
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "jax": jax.__version__}
        asked = {"prompts": len(prompts), "cap": args.cap, "repeats": args.repeats}
        steps_ms = {f"{B} rows read {C}": x for (B, C), x in ms.items()}
        written = {"machine": machine, "settings": asked, "steps_ms": steps_ms, "rows": rows}
        replace_file(args.out, json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
