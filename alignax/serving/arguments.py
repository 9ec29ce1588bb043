"""The arguments of sample, chat and serve; apart from the commands, so that --help does not wait for JAX."""

import argparse
from typing import Any


def add(commands: Any, layout: dict[str, Any]) -> None:
    """Adds the three commands to the command line. `layout`: how their help is printed."""
    sample = commands.add_parser("sample", help="print completions of a checkpoint", **layout)
    sample.add_argument("checkpoint", help="folder of a finished policy")
    sample.add_argument("prompts", nargs="*", help="one prompt each")
    sample.add_argument("--prompts-file", default="", help='a prompt a line, or JSONL with "prompt"; - is stdin')
    sample.add_argument("--system", default="", help="what a chat begins with, before each prompt")
    sample.add_argument("--n", type=int, default=1, help="completions per prompt (default 1)")
    settings(sample, max_new_tokens=64, seed=0)
    sample.add_argument("--beams", type=int, default=0, help="search with so many beams; 0: sample (default)")
    sample.add_argument("--stop", action="append", default=[], help="ends a completion; give it again for more")
    sample.add_argument("--out", default="", help="writes JSONL instead of printing", metavar="OUT.jsonl")

    chat = commands.add_parser("chat", help="talk with a checkpoint in the terminal", **layout)
    chat.add_argument("checkpoint", help="folder of a finished policy")
    chat.add_argument("--system", default="", help="what the dialogue begins with")
    settings(chat, max_new_tokens=512, seed=None)
    room(chat)

    serve = commands.add_parser("serve", help="OpenAI's completions and chat over HTTP", **layout)
    serve.add_argument("checkpoint", help="folder of a finished policy")
    serve.add_argument("--port", type=int, default=8000, help="default 8000; 0 takes a free one")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine)")
    serve.add_argument("--slots", type=int, default=16, help="replies that are written at once (default 16)")
    room(serve)
    serve.add_argument("--name", default="", help="what the model is called (default: its folder's name)")


def settings(parser: argparse.ArgumentParser, *, max_new_tokens: int, seed: int | None) -> None:
    """How replies are sampled."""
    parser.add_argument("--temperature", type=float, default=1.0, help="0 takes the most probable token (default 1)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus mass (default 1: off)")
    parser.add_argument("--top-k", type=int, default=0, help="candidates (default 0: off)")
    parser.add_argument("--min-p", type=float, default=0.0, help="share of the largest probability (default 0: off)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, help="more repeats less (default 1: off)")
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens, help=f"tokens (default {max_new_tokens})")
    told = "another one each time" if seed is None else str(seed)
    parser.add_argument("--seed", type=int, default=seed, help=f"of the noise (default {told})")


def room(parser: argparse.ArgumentParser) -> None:
    """How long prompt and reply may be."""
    told = "tokens of prompt and reply (default 2048, or what the model reads, if that is less)"
    parser.add_argument("--max-length", type=int, default=0, help=told)
