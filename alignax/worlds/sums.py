"""Sums of digits, and a calculator that a policy may call: a world in which a tool pays.

A prompt is a product of two numbers, "37*84"; a reply is its value, or first a call of the tool `calculate`. Text is
read letter by letter, and a call is written as Hermes and Qwen write it. Everything is a function of its arguments.
"""

import random
import zlib
from typing import Any

import tokenizers
from tokenizers import decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import AddedToken, PreTrainedTokenizerFast

from alignax.data.counts import Counts
from alignax.worlds.tokenizer import fast

SPLITS = {"sft": 0.6, "online": 0.25, "eval": 0.15}  # shares of the prompts
LARGEST = 99  # factor
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "<tool>", "<tools>")
MARKS = ("<tool_call>", "</tool_call>")
HEAD, TAIL = '{"name": "calculate", "arguments": {"expression": "', '"}}'  # of a call: a token each
LETTERS = "\n" + "".join(map(chr, range(32, 127)))
TOOL = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "The value of an expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "numbers with + - * / and brackets"}},
            "required": ["expression"],
        },
    },
}
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% if tools %}{% for tool in tools %}{{ '<tools>' + tool['function']['name'] }}{% endfor %}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<user>' + message['content'] }}"
    "{% elif message['role'] == 'tool' %}{{ '<tool>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<assistant>' }}"
    "{% generation %}{{ message['content'] }}"
    "{% if message['tool_calls'] %}{% for call in message['tool_calls'] %}"
    "{{ '<tool_call>{\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' "
    "+ (call['function']['arguments'] | tojson) + '}</tool_call>' }}{% endfor %}{% endif %}"
    "{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ raise_exception('there is no role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per letter, and one for each of the parts of a call that are always the same."""
    words = [*SPECIALS, *MARKS, HEAD, TAIL, "calculate", *LETTERS]
    backend = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    pieces = "|".join(_escaped(word) for word in (HEAD, TAIL, "calculate")) + r"|.|\n"
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pieces), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in MARKS])
    return fast(backend, CHAT_TEMPLATE, SPECIALS)


def _escaped(word: str) -> str:
    return "".join(letter if letter.isalnum() or letter == " " else "\\" + letter for letter in word)


def prompts(*, split: str, count: int, world_split: str = "online", seed: int = 0) -> tuple[list[dict], Counts]:
    """`count` distinct prompts of `world_split`, each with its answer. `split` has to be "train"."""
    if split != "train":
        raise ValueError(f"prompts of sums have no split {split!r}: choose another world_split instead")
    rows = [row_of(*pair) for pair in _drawn(world_split, count, f"prompts {seed}")]
    return rows, Counts(len(rows))


def demonstrations(
    *, split: str, count: int, heldout: int = 256, tools: float = 0.5, calls: float = 0.3, seed: int = 0
) -> tuple[list[dict[str, Any]], Counts]:
    """`count` demonstrations on the "sft" prompts, each as often as need be; `heldout` ones on "eval" prompts.

    A share `tools` of the prompts shows the tool; of these a share `calls` is answered by a call, what the tool says,
    and the answer. All others are answered straight away. Every answer is right.
    """
    rng = random.Random(f"sums {split} {seed}")
    n, world_split = (count, "sft") if split == "train" else (heldout, "eval")
    pairs = _drawn(world_split, None, f"demonstrations {split} {seed}")
    rows = [demonstration(*rng.choice(pairs), rng.random() < tools, rng.random() < calls) for _ in range(n)]
    return rows, Counts(len(rows))


def demonstration(a: int, b: int, shown: bool, called: bool) -> dict[str, Any]:
    """A prompt with the reply to it."""
    row, answer = row_of(a, b), {"role": "assistant", "content": str(a * b)}
    said = [answer]
    if shown and called:
        function = {"name": "calculate", "arguments": {"expression": row["prompt"]}}
        call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        said = [call, {"role": "tool", "name": "calculate", "content": row["answer"]}, answer]
    return row | {"completion": said} | ({"tools": [TOOL]} if shown else {})


def row_of(a: int, b: int) -> dict[str, Any]:
    """A prompt and its answer."""
    return {"prompt": f"{a}*{b}", "answer": str(a * b)}


def split_of(a: int, b: int) -> str:
    """The split of a prompt; that of a product does not depend on the order of its factors."""
    point, edge = zlib.crc32(f"{min(a, b)} {max(a, b)}".encode()) / 2**32, 0.0
    for name, share in SPLITS.items():
        edge += share
        if point < edge:
            return name
    return name


def _drawn(world_split: str, count: int | None, seed: str) -> list[tuple[int, int]]:
    """Distinct pairs of factors of a split, in the order that a seed gives."""
    if world_split not in SPLITS:
        raise ValueError(f"world_split = {world_split!r}: expected one of {', '.join(SPLITS)}")
    numbers = range(2, LARGEST + 1)
    pairs = [(a, b) for a in numbers for b in numbers if split_of(a, b) == world_split]
    random.Random(seed).shuffle(pairs)
    if count is not None and count > len(pairs):
        raise ValueError(f"count = {count}: the split {world_split!r} has {len(pairs)} prompts; ask for fewer")
    return pairs[:count]
