"""`alignax sample`: completions of prompts that are there at once."""

import argparse
import json
import sys
from pathlib import Path

from alignax.config import ConfigError
from alignax.stages.playground import complete


def command(args: argparse.Namespace) -> None:
    """Prints completions, or writes them into a file."""
    prompts = [*args.prompts, *(prompts_in(args.prompts_file) if args.prompts_file else [])]
    if not prompts:
        raise ConfigError("no prompts: expected one or more behind the checkpoint, or --prompts-file=FILE")
    system = [{"role": "system", "content": args.system}] if args.system else []
    asked = [[*system, {"role": "user", "content": text}] if system else text for text in prompts]
    names = ("n", "beams", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "stop", "max_new_tokens")
    names += ("seed",)
    rows = complete(args.checkpoint, asked, **{name: getattr(args, name) for name in names})
    if args.out:
        write(Path(args.out), prompts, rows)
        return
    for prompt, completions in zip(prompts, rows, strict=True):
        print(f"> {prompt}")
        for text, done in completions:
            print(f"{text}{'' if done else ' [cut off]'}")


def write(path: Path, prompts: list[str], rows: list[list[tuple[str, bool]]]) -> None:
    """A row for each completion: prompt, completion, finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for prompt, completions in zip(prompts, rows, strict=True):
            for text, done in completions:
                row = {"prompt": prompt, "completion": text, "finished": done}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{sum(map(len, rows))} completions: {path}")


def prompts_in(path: str) -> list[str]:
    """The prompts of a file: a text a line, or in a .jsonl file the field "prompt". Empty lines are left out."""
    whole = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    lines = [line for line in whole.splitlines() if line.strip()]
    if not path.endswith(".jsonl"):
        return lines
    out = []
    for number, line in enumerate(lines, 1):
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, str):
            raise ConfigError(f'row {number} of {path}: {line[:80]!r}: expected an object with a text "prompt"')
        out.append(prompt)
    return out
