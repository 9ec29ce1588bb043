"""Peak memory of the host while a checkpoint of Hugging Face's format comes in.

Command: python benchmarks/import_memory.py [--layers 12] [--dtype float32] [--out FILE.json]

Writes a random Llama-shaped checkpoint in several files and imports it in a process of its own, once by `load_weights`
alone and once by the whole `alignax import`, which also hashes and saves. A thread reads /proc (Linux) every two
milliseconds. Columns, in MB: file (the tensors on disk), parameters (as they are kept, float32), largest (tensor, as
kept), shard (the largest file), peak (resident above what the process had before, less pages of files that are mapped,
which the system may drop), beside (peak less parameters), mapped (those pages). On a CPU host and device are one
memory, so that the parameters count once; "beside" is what the import needs on top, and what the host of an
accelerator would need at all.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import alignax
from alignax import sharding
from alignax.log import replace_file
from alignax.models.config import ModelConfig
from alignax.models.decoder import decoder
from alignax.models.hf import config as hf_config
from alignax.models.hf.families import FAMILIES
from alignax.models.hf.weights import load_weights, save_weights
from alignax.stages import imported, parents
from alignax.worlds.tokenizer import build_tokenizer


def write(folder: Path, *, layers: int, dtype: str, shard_bytes: int) -> ModelConfig:
    """A random checkpoint: 32,000 tokens, of which the tokenizer of the world has 219, and 768 wide."""
    from transformers import AutoConfig

    shape = dict(dim=768, layers=layers, heads=12, kv_heads=12, head_dim=64, ffn=2048, tie_embeddings=False)
    config, family = ModelConfig(len(build_tokenizer()), vocab_rows=32_000, **shape), FAMILIES["llama"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.standard_normal(x.shape, np.float32) * 0.02,
        jax.eval_shape(decoder(config).init, jax.random.key(0)),
    )
    AutoConfig.for_model("llama", **hf_config.to_hf(config, family)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    save_weights(folder, family, config, params, dtype=dtype, shard_bytes=shard_bytes)
    return config


def resident() -> tuple[int, int]:
    """Bytes of this process in memory: its own, and pages of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "Rss" in name}
    return 1024 * sizes["RssAnon"], 1024 * sizes["RssFile"]


def child(kind: str, folder: Path, out: Path) -> dict[str, float]:
    """Imports in this process; the peak above what was resident before, in MB."""
    jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(8))())  # the device is up
    family, theirs = hf_config.read_config(folder)
    mesh = sharding.make_mesh({"data": 1, "fsdp": -1})
    model = parents.on_mesh(hf_config.from_hf(family, theirs, tokens=len(build_tokenizer())), mesh)
    targets = parents.sharded_shapes(jax.eval_shape(model.init, jax.random.key(0)), mesh)
    before, peak, done = resident(), [0, 0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[:] = map(max, peak, resident())
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    if kind == "load_weights":
        jax.block_until_ready(load_weights(folder, family, model.config, targets))
    else:
        c = imported.get_config()
        c.path = str(folder)
        imported.run(c, out)
    done.set()
    thread.join()
    return {"peak": (peak[0] - before[0]) / 1e6, "mapped": (peak[1] - before[1]) / 1e6}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12, help="of 28 MB each (default 12)")
    parser.add_argument("--dtype", default="float32", help="of the file (default float32)")
    parser.add_argument("--shard-mb", type=int, default=100, help="size of a file (default 100)")
    parser.add_argument("--out", type=Path, help="JSON file for the rows, with machine and versions")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, folder, out = args.child
        print(json.dumps(child(kind, Path(folder), Path(out))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        config = write(source, layers=args.layers, dtype=args.dtype, shard_bytes=args.shard_mb * 10**6)
        sizes = [file.stat().st_size for file in source.glob("*.safetensors")]
        shapes = jax.tree.leaves(jax.eval_shape(decoder(config).init, jax.random.key(0)))
        kept = sum(4 * x.size for x in shapes)
        for kind in ("load_weights", "alignax import"):
            command = [sys.executable, __file__, "--child", kind, str(source), str(Path(folder) / "out")]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
            found = json.loads(told)
            rows.append({
                "what": kind, "file": sum(sizes) / 1e6, "parameters": kept / 1e6,
                "largest": 4 * config.padded_vocab * config.dim / 1e6, "shard": max(sizes) / 1e6, "peak": found["peak"],
                "beside": found["peak"] - kept / 1e6, "mapped": found["mapped"],
            })  # fmt: skip
    table = Table(*rows[0], title=f"MB; {args.dtype} file, jax {jax.__version__}")
    for row in rows:
        table.add_row(*(f"{v:,.0f}" if isinstance(v, float) else v for v in row.values()))
    Console().print(table)
    if args.out:
        machine = {
            "processor": platform.machine(), "python": platform.python_version(), "jax": jax.__version__,
            "alignax": alignax.__version__,
        }  # fmt: skip
        args.out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(args.out, json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
