"""Things and what is true of them: a world for twenty questions, of an asker and an answerer.

The asker's prompt is always the same; what is meant is in the row. A question is about one fact, "is it alive ?", or a
guess, "is it a cat ?". The answerer is asked "cat : is it alive ?" and says yes or no. Everything is a function of its
arguments.
"""

import random
from typing import Any

import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from alignax.data.counts import Counts
from alignax.worlds.tokenizer import CHAT_TEMPLATE, SPECIALS, fast

THINGS = {
    "cat": "alive animal furry legs indoors",
    "dog": "alive animal furry legs indoors loud",
    "horse": "alive animal furry legs large",
    "cow": "alive animal furry legs large edible",
    "lion": "alive animal furry legs large loud",
    "whale": "alive animal large wet",
    "shark": "alive animal large wet sharp",
    "trout": "alive animal wet edible",
    "eagle": "alive animal legs flies sharp",
    "parrot": "alive animal legs flies indoors loud",
    "duck": "alive animal legs flies wet edible",
    "bee": "alive animal legs flies sharp loud",
    "oak": "alive wooden large",
    "rose": "alive sharp",
    "cactus": "alive sharp indoors",
    "apple": "edible",
    "bread": "edible indoors",
    "soup": "edible wet indoors",
    "table": "wooden legs indoors",
    "guitar": "wooden loud indoors",
    "pencil": "wooden sharp indoors",
    "raft": "wooden wet large",
    "knife": "metal sharp indoors",
    "bell": "metal loud indoors",
    "anchor": "metal wet large",
    "aeroplane": "metal flies large loud",
    "kite": "flies",
    "pillow": "indoors",
    "river": "wet large",
    "mountain": "large",
    "axe": "metal wooden sharp",
    "train": "metal large loud",
}
TRUE = tuple(sorted({fact for facts in THINGS.values() for fact in facts.split()}))
# what is true of none of the things: a question that tells nothing
IDLE = ("frozen", "glass", "golden", "imaginary", "invisible", "paper", "purple", "sour", "spotted", "striped",
        "transparent", "woollen")  # fmt: skip
FACTS = TRUE + IDLE
PROMPT = "guess"
TURNS = 8  # questions of a demonstrated game, at most


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word."""
    words = [*SPECIALS, PROMPT, "is", "it", "a", "?", ":", "yes", "no", *FACTS, *THINGS]
    backend = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    return fast(backend, CHAT_TEMPLATE, SPECIALS)


def prompts(*, split: str, count: int, seed: int = 0) -> tuple[list[dict], Counts]:
    """`count` games, as many of each thing. `split` has to be "train"."""
    if split != "train":
        raise ValueError(f"prompts of things have no split {split!r}")
    names, rng = list(THINGS), random.Random(f"things {seed}")
    rows = []
    while len(rows) < count:
        rows += [row_of(name) for name in rng.sample(names, len(names))]
    return rows[:count], Counts(count)


def games(
    *, split: str, count: int, heldout: int = 256, guesses: float = 0.1, seed: int = 0
) -> tuple[list[dict[str, Any]], Counts]:
    """`count` demonstrations of an asker who plays by no plan: `heldout` others where `split` is not "train".

    It asks for facts in a random order, half of which are true of nothing, and guesses at each turn with a probability
    of `guesses`, and at the last: something that agrees with all answers so far. Not all games are won.
    """
    rng, n = random.Random(f"games {split} {seed}"), count if split == "train" else heldout
    rows = [game(rng.choice(list(THINGS)), guesses, rng) for _ in range(n)]
    return rows, Counts(n)


def game(meant: str, guesses: float, rng: random.Random, facts: tuple[str, ...] = FACTS) -> dict[str, Any]:
    """One game, as a prompt with its dialogue; `facts` are those that the asker knows."""
    left, order, said = list(THINGS), rng.sample(facts, len(facts)), []
    for turn in range(1, TURNS + 1):
        if turn == TURNS or rng.random() < guesses or len(left) == 1:
            guess = rng.choice(left)
            said.append({"role": "assistant", "content": f"is it a {guess} ?"})
            if guess == meant or turn == TURNS:
                break
            left, answer = [name for name in left if name != guess], "no"
        else:
            fact = order.pop()
            said.append({"role": "assistant", "content": f"is it {fact} ?"})
            left, answer = [name for name in left if holds(name, fact) == holds(meant, fact)], yes(meant, fact)
        said.append({"role": "user", "content": answer})
    return row_of(meant) | {"completion": said}


def answers(*, split: str, count: int, heldout: int = 256, seed: int = 0) -> tuple[list[dict[str, Any]], Counts]:
    """`count` demonstrations of the answerer, on all things and facts, and on guesses; `heldout` of another split."""
    rng, n = random.Random(f"answers {split} {seed}"), count if split == "train" else heldout
    rows = []
    for _ in range(n):
        meant, guess, fact = rng.choice(list(THINGS)), rng.choice(list(THINGS)), rng.choice(FACTS)
        asked, said = (
            (f"a {guess}", "yes" if guess == meant else "no") if rng.random() < 0.1 else (fact, yes(meant, fact))
        )
        rows.append({"prompt": f"{meant} : is it {asked} ?", "completion": said})
    return rows, Counts(n)


def row_of(name: str) -> dict[str, Any]:
    """A game in which `name` is meant."""
    return {"prompt": PROMPT, "answer": name, "facts": THINGS[name].split()}


def holds(name: str, fact: str) -> bool:
    """Whether a fact is true of a thing."""
    return fact in THINGS[name].split()


def yes(name: str, fact: str) -> str:
    """What an answerer says who knows."""
    return "yes" if holds(name, fact) else "no"
