"""alignax beside TRL (PyTorch) and Tunix (JAX): real tokens per second and peak memory of SFT, DPO and reward models.

Command: python benchmarks/peers.py --data hh_harmless.jsonl.gz --tokenizer gpt2_tokenizer
         --peers trl=/path/to/python,tunix=/path/to/python [--losses sft,dpo,reward] [--dtypes float32,bfloat16]
         [--pairs 320] [--batch 8] [--repeats 3] [--variants 'alignax packing=off' 'trl@sft packing=true'] [--out F]

Each contender trains a Llama shape of 30M parameters with random weights, in a process and an environment of its own,
on the same token ids, by its own trainer (benchmarks/contenders/): AdamW, cosine, clipping, as many pairs in a batch.
They take turns, `repeats` times, so that what else the machine does hits all alike. The first `warmup_steps` of a run,
in which it compiles, do not count; those that count are as many as an epoch has. A variant is a contender with other
settings; after `@` stand the losses that have them.

Columns: real tokens per second, the median of the repeats (prompt and chosen reply for SFT, both sides with their
prompt for DPO and reward models: no padding, and counted alike for everybody), and per second of processor time (on a
busy machine it says more; but what waits in a loop for its other threads counts that in); peak resident memory of the
process (MB); how many times faster alignax at the settings of configs/hh/ is, the median of the ratios of neighbouring
runs, with the least and the largest; compiles, their seconds, and the steps that were left out because something was
compiled meanwhile; the first and the last loss that were logged, which say that the work is the same (about ln V for
SFT, ln 2 for DPO and somewhere near it for a reward model). Compare within one run only: machines differ.
"""

import argparse
import ast
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from alignax.config import resolve
from alignax.data.encode import pair_rows
from alignax.data.sources.hh import hh
from alignax.data.tokenizer import load_tokenizer
from alignax.log import replace_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what the benchmarks share
from benchmarks import processes  # noqa: E402

# 30M parameters with GPT-2's vocabulary, 19M of them the embedding, which is the output layer too
SHAPE = {"dim": 384, "layers": 6, "heads": 6, "kv_heads": 2, "head_dim": 64, "ffn": 1152}
RATES = {"sft": 2e-5, "dpo": 1e-6, "reward": 1e-5, "parent": 1e-9}
MEDIANS = ("tokens_per_s", "tokens_per_cpu_s", "peak_mb")
HELD_OUT = 8  # pairs: what alignax's stages measure before and after, outside the timed steps


def prepare(path: Path, tokenizer_name: str, folder: Path, pairs: int, max_length: int) -> dict:
    """Writes the pairs, as text and as ids, and the tokenizer; returns what they are.

    The first pairs of the file that fit into `max_length` tokens, with their lengths as they are.
    """
    tokenizer = (
        resolve(tokenizer_name, "", key="tokenizer")() if ":" in tokenizer_name else load_tokenizer(tokenizer_name)
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    rows, _ = hh(path=str(path))
    arrays, counts = pair_rows(rows, tokenizer, template="plain", max_length=max_length)
    if len(arrays["row"]) < pairs + HELD_OUT:
        raise SystemExit(f"--pairs {pairs}: {path} has {len(arrays['row'])} of at most {max_length} tokens ({counts})")
    found = []
    for i, row in enumerate(arrays["row"][: pairs + HELD_OUT]):
        ids = {}
        for name in ("chosen", "rejected"):
            tokens, valid, mask = (arrays[name][key][i] for key in ("tokens", "valid", "mask"))
            ids |= {"prompt_ids": tokens[valid & ~mask].tolist(), f"{name}_ids": tokens[mask].tolist()}
        found.append({name: rows[row][name] for name in ("prompt", "chosen", "rejected")} | ids)
    (folder / "data").mkdir(parents=True)
    for split, part in (("train", found[:pairs]), ("test", found[pairs:])):
        text = "".join(json.dumps(pair) + "\n" for pair in part)
        (folder / "data" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    lengths = [len(pair["prompt_ids"]) + len(pair[f"{name}_ids"]) for pair in found for name in ("chosen", "rejected")]
    return {"pairs": pairs, "longest": max(lengths), "mean": float(np.mean(lengths)), "vocab_size": len(tokenizer)}


def literal(text: str):
    """A Python value, or the text itself."""
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    except (ValueError, SyntaxError):
        return text


def contenders(peers: str, variants: list[str]) -> list[dict]:
    """[{name, kind, python, losses, options}]: alignax, the peers, and the variants."""
    pythons = {"alignax": sys.executable} | dict(item.split("=", 1) for item in filter(None, peers.split(",")))
    found = [{"name": kind, "kind": kind, "losses": [], "options": {}} for kind in pythons]
    for variant in variants:
        who, *settings = variant.split()
        kind, _, losses = who.partition("@")
        losses = losses.split(",") if losses else []
        if kind not in pythons:
            raise SystemExit(f"--variants {variant!r}: expected one of {', '.join(pythons)} first")
        options = {key: literal(value) for key, value in (item.split("=", 1) for item in settings)}
        found.append({"name": f"{kind} {' '.join(settings)}", "kind": kind, "losses": losses, "options": options})
    return [one | {"python": pythons[one["kind"]]} for one in found]


def launch(contender: dict, settings: dict, folder: Path) -> dict | None:
    """One run of a contender; None if it fails."""
    ours = contender["kind"] == "alignax"
    asked, script = settings | {"options": contender["options"]}, f"contenders/with_{contender['kind']}.py"
    # what `alignax run` does for itself
    memory = "glibc.malloc.hugetlb=1" if ours else processes.MALLOC
    return processes.launch(contender["python"], script, asked, folder, ours=ours, malloc=memory)


def race(args: argparse.Namespace, folder: Path, data: dict) -> list[dict]:
    """The results of all runs: contenders take turns within a repeat; one that fails gets no second turn."""
    field, results, broken = contenders(args.peers, args.variants), [], set()
    settings = shared_settings(args, folder, data)
    start = {"loss": "parent", "dtype": "float32", "total_steps": 1, "learning_rate": RATES["parent"]}
    if launch(field[0], settings | start, folder / "parent") is None:
        raise SystemExit("no policy to start from: see above")
    turns = itertools.product(args.losses.split(","), args.dtypes.split(","), range(args.repeats), field)
    for number, (loss, dtype, repeat, contender) in enumerate(turns):
        name = contender["name"]
        if (name, loss, dtype) in broken or loss not in (contender["losses"] or [loss]):
            continue
        asked = settings | {"loss": loss, "dtype": dtype, "learning_rate": RATES[loss]}
        result = launch(contender, asked, folder / f"{number:03}-{contender['kind']}-{loss}")
        if result is None:
            broken.add((name, loss, dtype))
            continue
        results.append({"loss": loss, "dtype": dtype, "repeat": repeat, "contender": name} | result)
        print(f"{loss} {dtype} {name}: {result['tokens_per_s']:,.0f} tokens/s", flush=True)
    return results


def shared_settings(args: argparse.Namespace, folder: Path, data: dict) -> dict:
    """What all contenders are told."""
    shape = SHAPE | {key: int(value) for key, value in (item.split("=") for item in args.shape)}
    steps = -(-args.pairs // args.batch)
    return data | {
        "shape": shape, "data": str(folder / "data"), "tokenizer": str(folder / "tokenizer"), "batch": args.batch,
        "parent": str(folder / "parent" / "run"), "max_length": args.max_length,
        "warmup_steps": args.warmup_steps, "total_steps": args.warmup_steps + steps,
    }  # fmt: skip


def summary(results: list[dict]) -> list[dict]:
    """A row per loss, dtype and contender: medians over the repeats, and how many times faster alignax is."""
    rows = []
    for loss, dtype, name in dict.fromkeys((r["loss"], r["dtype"], r["contender"]) for r in results):
        runs, base = (
            {r["repeat"]: r for r in results if (r["loss"], r["dtype"], r["contender"]) == (loss, dtype, who)}
            for who in (name, "alignax")
        )
        ratios = [base[k]["tokens_per_s"] / runs[k]["tokens_per_s"] for k in runs if k in base]
        row = {"loss": loss, "dtype": dtype, "contender": name}
        row |= {key: statistics.median(run[key] for run in runs.values()) for key in MEDIANS}
        over = (statistics.median(ratios), min(ratios), max(ratios)) if ratios else (None, None, None)
        row |= dict(zip(("alignax_is", "least", "most"), over, strict=True))
        last = runs[max(runs)]
        row |= {key: last.get(key) for key in ("compiles", "compile_s", "left_out", "first_loss", "last_loss")}
        rows.append(row)
    return rows


def show(rows: list[dict]) -> None:
    """Prints the table."""
    table = Table(*rows[0], title=f"{platform.machine()}, {os.cpu_count()} cores")
    for row in rows:
        table.add_row(*(f"{v:,.4g}" if isinstance(v, float) else "" if v is None else str(v) for v in row.values()))
    Console(width=180).print(table)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dialogues in HH-RLHF's form")
    parser.add_argument("--tokenizer", required=True, help="folder, name on the hub, or module:function")
    parser.add_argument(
        "--peers", default="", help="trl=PYTHON,tunix=PYTHON: the interpreter of each one's environment"
    )
    parser.add_argument("--losses", default="sft,dpo,reward")
    parser.add_argument("--dtypes", default="float32", help="of activations: float32,bfloat16")
    parser.add_argument("--variants", nargs="*", default=[], help="'KIND[@LOSS,...] KEY=VALUE ...', in quotes each")
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step (default 8)")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens; pairs with more are left out")
    parser.add_argument("--warmup-steps", type=int, default=3, help="steps that do not count, at least 2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shape", nargs="*", default=[], help="fields of the model to change: layers=2 ...")
    parser.add_argument("--workdir", type=Path, help="new folder for settings, results and logs (default: temporary)")
    parser.add_argument("--out", type=Path, help="JSON file for everything, with machine and versions")
    args = parser.parse_args()
    if args.warmup_steps < 2:
        parser.error(f"--warmup-steps {args.warmup_steps}: expected 2 or more: the first step compiles")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.workdir or Path(temporary)).resolve()
        data = prepare(args.data, args.tokenizer, folder, args.pairs, args.max_length)
        print(data, flush=True)
        results = race(args, folder, data)
    rows = summary(results)
    show(rows)
    if args.out:
        places = ("data", "tokenizer", "peers", "workdir", "out")
        settings = {name: value for name, value in vars(args).items() if name not in places}
        machine = {"processor": platform.machine(), "cores": os.cpu_count()}
        written = {"machine": machine, "settings": settings, "data": data, "rows": rows, "runs": results}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(args.out, json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
