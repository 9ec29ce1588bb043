"""Rollouts beside other engines: new tokens per second, on the same weights and prompts, lengths as they are drawn.

Command: python benchmarks/rollouts.py [--engines alignax,plain,generate,tunix,vllm] [--vllm PYTHON] [--tunix PYTHON]
         [--dtypes float32,bfloat16] [--shape llama_29m] [--prompts 32] [--samples 8] [--cap 256] [--rounds 3]
         [--repeats 2] [--out F] [--folder CHECKPOINT --data hh_harmless.jsonl.gz]

The load: prompts of 24 to 128 random tokens, several replies to each, of which 128 of 8,192 tokens end one: with random
weights the lengths are about geometric, of mean 66 at a cap of 256. Or a model of one's own (`--folder`, in Hugging
Face's form) with real prompts. Every engine has a process of its own, and they take turns, `repeats` times; the first
of its rounds, which compiles or warms up, does not count. `plain` is alignax without its means: all rows to their end,
each prompt read for each reply, one block of cache. `--vllm` and `--tunix` are interpreters that have vLLM
(docs/install.md) or Tunix. `generate` compiles nothing: its round that does not count is short.

Columns: new tokens per second over the rounds that count (median of the repeats), mean length of the replies, how many
times faster alignax is in the same dtype (median, least, most of neighbouring runs), peak memory (MB) of the process,
seconds of the first round.
"""

import argparse
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

from alignax.log import replace_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for what the benchmarks share
from benchmarks.processes import launch  # noqa: E402

SHAPES = {
    "llama_29m": {"dim": 512, "layers": 8, "heads": 8, "kv_heads": 4, "head_dim": 64, "ffn": 1536, "vocab": 8192},
    "llama_100m": {"dim": 768, "layers": 14, "heads": 12, "kv_heads": 4, "head_dim": 64, "ffn": 2304, "vocab": 8192},
    "tiny": {"dim": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 128, "vocab": 512},
}


def checkpoint(shape: str, folder: Path, mean_length: float = 0.0) -> dict:
    """Writes random weights in Hugging Face's form; returns what the load has to know of them.

    With a `mean_length` token 0 ends a reply after about so many, whatever stands before it: an embedding has the same
    first number for all tokens, which no layer changes, and the output layer reads it for token 0 alone.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    s = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=s["vocab"], hidden_size=s["dim"], num_hidden_layers=s["layers"], num_attention_heads=s["heads"],
        num_key_value_heads=s["kv_heads"], head_dim=s["head_dim"], intermediate_size=s["ffn"],
        tie_word_embeddings=not mean_length, max_position_embeddings=1024, initializer_range=0.02,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    if mean_length:
        first, embed = 0.5, model.get_input_embeddings().weight
        with torch.no_grad():
            model.lm_head.weight.copy_(embed)
            embed[:, 0], model.lm_head.weight[:, 0] = first, 0.0
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight[0], layer.mlp.down_proj.weight[0] = 0.0, 0.0
            out = model(torch.tensor(random_prompts(4, s["vocab"])[0])[None], output_hidden_states=True)
            others = torch.logsumexp(out.logits[0, :, 1:].float(), dim=-1)
            # p(end) = 1 / mean_length, where the state's first number is what it is on average
            wanted = others.mean() - torch.log(torch.tensor(mean_length - 1.0))
            model.lm_head.weight[0] = 0.0
            model.lm_head.weight[0, 0] = wanted / out.hidden_states[-1][0, :, 0].mean()
    model.save_pretrained(folder)
    return {"vocab": s["vocab"], "ends": list(range(s["vocab"] // 64))}


def random_prompts(count: int, vocab: int) -> list[list[int]]:
    """Prompts of 24 to 128 tokens none of which ends a reply."""
    rng = np.random.default_rng(0)
    return [rng.integers(vocab // 40, vocab, size=n).tolist() for n in rng.integers(24, 129, size=count)]


def real_prompts(count: int, data: Path, tokenizer_folder: str) -> tuple[list[list[int]], list[int]]:
    """The first prompts of HH's dialogues that have at most 128 tokens, and the ids that end a reply."""
    from alignax.data.encode import encode_prompt
    from alignax.data.forms import convert
    from alignax.data.sources.hh import hh
    from alignax.data.templates import stop_ids
    from alignax.data.tokenizer import load_tokenizer

    tokenizer, template = load_tokenizer(tokenizer_folder), "chat"
    rows, _ = convert(hh(path=str(data))[0], "prompt_only", template=template)
    ids = (encode_prompt(tokenizer, row["prompt"], template) for row in rows)
    return [one for one in ids if len(one) <= 128][:count], sorted(stop_ids(tokenizer, template))


def engines(names: str, dtypes: str, pythons: dict[str, str]) -> list[dict]:
    """[{name, dtype, python, script}] in the order of their turns; without one that has no interpreter."""
    found = []
    for dtype in dtypes.split(","):
        for name in names.split(","):
            if name not in pythons:
                raise SystemExit(f"--engines {name!r}: expected some of {', '.join(pythons)}")
            if pythons[name]:
                script = f"with_{'alignax' if name == 'plain' else name}"
                found.append({"name": name, "dtype": dtype, "python": pythons[name], "script": script})
    return found


def race(field: list[dict], settings: dict, repeats: int, folder: Path) -> list[dict]:
    """The results of all runs; one that fails gets no second turn."""
    results, broken = [], set()
    for repeat in range(repeats):
        for engine in field:
            who = engine["name"], engine["dtype"]
            if who in broken:
                continue
            asked = settings | {"dtype": engine["dtype"], "plain": engine["name"] == "plain"}
            at, ours = folder / f"{repeat}-{'-'.join(who)}", engine["python"] == sys.executable
            found = launch(engine["python"], f"engines/{engine['script']}.py", asked, at, ours=ours)
            if found is None:
                broken.add(who)
                continue
            counted = found["rounds"][1:]
            speed = sum(one["tokens"] for one in counted) / sum(one["seconds"] for one in counted)
            results.append({"engine": who[0], "dtype": who[1], "repeat": repeat, "tokens_per_s": speed} | found)
            print(f"{who[1]} {who[0]}: {speed:,.0f} tokens/s", flush=True)
    return results


def summary(results: list[dict]) -> list[dict]:
    """A row per engine and dtype."""
    rows = []
    for name, dtype in dict.fromkeys((r["engine"], r["dtype"]) for r in results):
        own, base = (
            {r["repeat"]: r for r in results if (r["engine"], r["dtype"]) == (who, dtype)} for who in (name, "alignax")
        )
        ratios = sorted(base[k]["tokens_per_s"] / own[k]["tokens_per_s"] for k in own if k in base)
        over = (statistics.median(ratios), ratios[0], ratios[-1]) if ratios else (None,) * 3
        row = {"engine": name, "dtype": dtype}
        row |= {"tokens_per_s": statistics.median(one["tokens_per_s"] for one in own.values())}
        rounds = [one for run in own.values() for one in run["rounds"]]
        row |= {"mean_length": sum(one["tokens"] for one in rounds) / sum(one["replies"] for one in rounds)}
        row |= dict(zip(("alignax_is", "least", "most"), over, strict=True))
        last = own[max(own)]
        row |= {"peak_mb": last["peak_mb"], "first_round_s": last["rounds"][0]["seconds"]}
        rows.append(row | {"version": last["version"]})
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default="alignax,plain,generate,tunix,vllm")
    parser.add_argument("--vllm", default="", help="interpreter of an environment that has vLLM; without one it is out")
    parser.add_argument("--tunix", default="", help="the same of Tunix")
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--shape", default="llama_29m", choices=sorted(SHAPES))
    parser.add_argument("--folder", type=Path, help="a model in Hugging Face's form, with its tokenizer, not --shape")
    parser.add_argument("--data", type=Path, help="dialogues in HH-RLHF's form, for --folder")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8, help="replies to each prompt")
    parser.add_argument("--cap", type=int, default=256, help="new tokens at most")
    parser.add_argument("--slots", type=int, default=0, help="of alignax; 0: as many as there are replies")
    parser.add_argument("--rounds", type=int, default=3, help="rollouts of a process; the first does not count")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file for everything, with machine and versions")
    args = parser.parse_args()
    if args.rounds < 2 or bool(args.folder) != bool(args.data):
        parser.error("expected --rounds of 2 or more, and --folder and --data together")
    ours = dict.fromkeys(("alignax", "plain", "generate"), sys.executable)
    field = engines(args.engines, args.dtypes, ours | {"tunix": args.tunix, "vllm": args.vllm})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.folder:
            prompts, ends = real_prompts(args.prompts, args.data, str(args.folder))
            known = {"ends": ends}
        else:
            known = checkpoint(args.shape, folder / "model")
            prompts = random_prompts(args.prompts, known["vocab"])
        settings = {
            "folder": str(args.folder.resolve() if args.folder else folder / "model"), "prompts": prompts,
            "samples": args.samples, "cap": args.cap, "slots": args.slots, "rounds": args.rounds, "ends": known["ends"],
        }  # fmt: skip
        results = race(field, settings, args.repeats, folder)
    if not results:
        raise SystemExit("no engine has a result: see above")
    rows = summary(results)
    table = Table(*rows[0], title=f"{platform.machine()}, {os.cpu_count()} cores")
    for row in rows:
        table.add_row(*(f"{v:,.4g}" if isinstance(v, float) else "" if v is None else str(v) for v in row.values()))
    Console(width=160).print(table)
    if args.out:
        machine = {"processor": platform.machine(), "cores": os.cpu_count()}
        asked = {k: v for k, v in vars(args).items() if k not in ("folder", "data", "out", "vllm", "tunix")}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        written = {"machine": machine, "settings": asked, "rows": rows, "runs": results}
        replace_file(args.out, json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
