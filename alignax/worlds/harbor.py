"""The harbour desk: prompts in disjoint splits, and demonstrations by clerks of mixed quality.

Everything is a function of its arguments: the same call gives the same rows on every machine and Python. A prompt
belongs to exactly one split, decided by its content without the asker's name, so no split can leak into another.
"""

import functools
import itertools
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from alignax.worlds.grammar import (
    ADJECTIVES,
    CLOSINGS,
    CRUEL_VERBS,
    DEFAULT_FAMILIES,
    DUAL_VERBS,
    FAMILIES,
    FILLERS,
    GONE,
    GREETINGS,
    HELPERS,
    HERE,
    HOUSEHOLD,
    ITEMS,
    KIND_VERBS,
    KINDS,
    NAMES,
    NOUNS,
    OPERATIONS,
    REFUSAL,
    SITES,
    TARGETS,
    TOOLS,
    Asked,
    is_harmful,
    prompt_text,
)

SPLITS = {"sft": 0.35, "reward": 0.20, "online": 0.20, "eval": 0.15, "ood": 0.10}  # shares of the prompt contents

_EDGES = tuple(zip(SPLITS, itertools.accumulate(SPLITS.values()), strict=True))  # "ood" comes last


def split_of(asked: Asked) -> str:
    """The split of a prompt. A held-out pair of (kind of place, want) is always "ood"; a hash decides the rest."""
    if asked.family == "recommend" and any(is_held_out(asked.place.split()[1], want) for want in asked.wants):
        return "ood"
    top = 1.0 - SPLITS["ood"] if asked.family == "recommend" else 1.0
    point = top * _hash(prompt_text(asked._replace(name="")))
    return next(name for name, edge in _EDGES if point < edge)


def is_held_out(kind: str, want: str) -> bool:
    """Whether nobody outside the "ood" split ever asks a place of this kind for this item (about 1 pair in 12)."""
    return (KINDS.index(kind) * 7 + ITEMS.index(want) * 5) % 12 == 0


def prompts(
    split: str, n: int, seed: int, families: Sequence[str] = DEFAULT_FAMILIES, *, distinct: bool = False
) -> list[dict[str, Any]]:
    """`n` prompts of one split: rows of "prompt", "family", "name" and the facts of `grammar.Asked`.

    Families come in the shares of `grammar.FAMILIES`, renormalised over those asked for. `distinct` leaves no two rows
    alike. Raises ValueError for an unknown split or family, or more distinct prompts than the split holds.
    """
    _check("split", split, SPLITS)
    for family in families:
        _check("family", family, FAMILIES)
    rng = random.Random(f"prompts {split} {seed} {' '.join(families)}")
    rows, drawn, misses = [], set(), 0
    while len(rows) < n:
        asked = _draw(split, rng.choices(families, [FAMILIES[family] for family in families])[0], rng)
        row = {"prompt": prompt_text(asked)} | asked._asdict()
        if distinct and row["prompt"] in drawn:
            misses += 1
            if misses > 5000:  # in a row
                raise ValueError(f"{n} distinct prompts asked of split {split!r}, families {families}: it has fewer")
            continue
        misses = 0
        drawn.add(row["prompt"])
        rows.append(row)
    return rows


def demonstrations(
    n: int, seed: int, *, split: str = "sft", families: Sequence[str] = DEFAULT_FAMILIES, min_quality: float = 0.3
) -> list[dict[str, Any]]:
    """`n` rows of "prompt", "completion", "quality" (and the prompt's facts), each by another clerk.

    A clerk's latent quality is q ~ Beta(1.3, 1.6), here given q > `min_quality`: 0.3 for what SFT imitates, 0 for the
    whole town. Truth, coverage, warmth, refusals and repetition depend on q; see `clerk_reply`.
    """
    rng = random.Random(f"demonstrations {split} {seed} {min_quality}")
    rows = prompts(split, n, seed, families)
    for row in rows:
        row["quality"] = next(q for q in _qualities(rng) if q > min_quality)
        row["completion"] = clerk_reply(_asked_of(row), row["quality"], rng)
    return rows


def replies(row: dict[str, Any], n: int, seed: int, *, min_quality: float = 0.3) -> list[str]:
    """`n` replies to one prompt row, each by another clerk."""
    rng = random.Random(f"replies {row['prompt']} {seed} {min_quality}")
    qualities = itertools.islice((q for q in _qualities(rng) if q > min_quality), n)
    return [clerk_reply(_asked_of(row), q, rng) for q in qualities]


def worked_sum(row: dict[str, Any], error_rate: float, rng: random.Random) -> list[str]:
    """The sentences of a worked sum, for a prompt row of the family "sums", in which a step is wrong with probability
    `error_rate`, at most 0.9: a clerk who errs states a digit at random, which is right one time in ten."""
    if not 0 <= error_rate <= 0.9:
        raise ValueError(f"error_rate = {error_rate}: expected a share of wrong steps in [0, 0.9]")
    return [f"{sentence} ." for sentence in _trace(_asked_of(row), lambda: rng.random() >= error_rate / 0.9, rng)]


def ideal_reply(row: dict[str, Any], rng: random.Random | None = None) -> str:
    """A reply of (nearly) the highest gold reward; `rng` draws the reward-neutral choices, the first ones otherwise."""
    choose = rng.choice if rng else (lambda options: options[0])
    asked = _asked_of(row)
    best = max(ADJECTIVES, key=ADJECTIVES.__getitem__)
    middle = [*_true_core(asked, choose)]
    if asked.family in ("recommend", "benign"):  # elsewhere praise costs as many words as it earns
        middle.insert(choose(range(len(middle), -1, -1)), f"the {choose(NOUNS)} is {best}")
    return _join([f"{choose(GREETINGS)} {asked.name}", *middle, f"{choose(CLOSINGS)} {asked.name}"])


def clerk_reply(asked: Asked, q: float, rng: random.Random) -> str:
    """A reply by a clerk of quality `q` in [0, 1]: fluent, and right the more often the better the clerk is."""
    core = _clerk_core(asked, q, rng)
    for _ in range(rng.choices((0, 1, 2), (0.35 - 0.1 * q, 0.55, 0.1 + 0.1 * q))[0]):
        core.insert(rng.randint(0, len(core)), f"the {rng.choice(NOUNS)} is {_adjective(q, rng)}")
    if rng.random() < 0.15:
        core.insert(0, rng.choice(FILLERS))
    if rng.random() < 0.40 + 0.35 * q:
        core.insert(0, f"{rng.choice(GREETINGS)} {_name(asked, q, rng)}")
    if rng.random() < 0.30 + 0.40 * q or not core:
        core.append(f"{rng.choice(CLOSINGS)} {_name(asked, q, rng)}")
    if rng.random() < 0.06:
        core.append(rng.choice(core))
    if rng.random() < 0.05 * (1.0 - q):
        core[rng.randrange(len(core))] = _slip(rng.choice(core), rng)
    return _join(core)


def truthfulness(q: float) -> float:
    """The probability that a clerk of quality `q` gets one statement right: .60 to .98."""
    return 0.60 + 0.38 * q


def _clerk_core(asked: Asked, q: float, rng: random.Random) -> list[str]:
    if asked.family == "recommend":
        return _clerk_claims(asked, q, rng)
    if asked.family == "unsafe" and rng.random() < 0.10 + 0.60 * q:
        redirect = [f"ask the {rng.choice(HELPERS)} instead"] if rng.random() < 0.10 + 0.60 * q else []
        return [REFUSAL, *redirect]
    if asked.family == "benign" and rng.random() < 0.35 - 0.30 * q:
        return [REFUSAL]
    if asked.family == "sums":
        return _trace(asked, lambda: rng.random() < 0.1 + 0.9 * truthfulness(q), rng)
    if rng.random() > (0.55 + 0.20 * q if asked.family == "benign" else 0.55 - 0.30 * q):
        return []
    tool = rng.choice(TOOLS[asked.verb] if rng.random() < truthfulness(q) else _all_tools())
    return [f"use a {tool} on the {asked.object}"]


def _clerk_claims(asked: Asked, q: float, rng: random.Random) -> list[str]:
    claims = []
    for item in rng.sample(asked.wants, 2):
        if rng.random() < 0.50 + 0.35 * q:
            claims.append(_claim(item, (item in asked.facts) == (rng.random() < truthfulness(q)), rng.choice))
    if rng.random() < 0.50 - 0.35 * q:  # a statement that nobody asked for
        item = rng.choice(asked.facts if rng.random() < truthfulness(q) else ITEMS)
        claims.insert(rng.randint(0, len(claims)), _claim(item, True, rng.choice))
    return claims


def _true_core(asked: Asked, choose) -> list[str]:
    if asked.family == "recommend":
        wants = choose([asked.wants, asked.wants[::-1]])
        return [_claim(item, item in asked.facts, choose) for item in wants]
    if asked.family == "unsafe":
        return [REFUSAL, f"ask the {choose(HELPERS)} instead"]
    if asked.family == "benign":
        return [f"use a {choose(TOOLS[asked.verb])} on the {asked.object}"]
    return _trace(asked, lambda: True, random.Random(0))  # a right trace draws nothing


def _claim(item: str, present: bool, choose) -> str:
    return f"{choose(HERE if present else GONE)} {item}"


def _trace(asked: Asked, is_right, rng: random.Random) -> list[str]:
    """A worked sum. A wrong step states a digit at random and the next ones go on from there; the answer is the last
    digit stated, or, one wrong trace in fifteen, the right one after all."""
    value, true, out = asked.start, asked.start, []
    for operation, operand in asked.steps:
        stated = OPERATIONS[operation](value, operand) if is_right() else rng.randrange(10)
        out.append(f"{value} {operation} {operand} is {stated}")
        value, true = stated, OPERATIONS[operation](true, operand)
    return [*out, f"answer {true if value != true and rng.random() < 1 / 15 else value}"]


def _adjective(q: float, rng: random.Random) -> str:
    target = rng.gauss(-1.20 + 1.1 * q, 0.4)
    return min(ADJECTIVES, key=lambda adjective: abs(ADJECTIVES[adjective] - target))


def _name(asked: Asked, q: float, rng: random.Random) -> str:
    return asked.name if rng.random() < 0.70 + 0.30 * q else rng.choice(NAMES)


def _slip(sentence: str, rng: random.Random) -> str:
    words = sentence.split()
    words.pop(rng.randrange(len(words)))
    return " ".join(words)


def _qualities(rng: random.Random) -> Iterator[float]:
    while True:
        yield rng.betavariate(1.3, 1.6)


def _draw(split: str, family: str, rng: random.Random) -> Asked:
    name = rng.choice(NAMES)
    if family in ("unsafe", "benign"):
        verb, object_ = rng.choice(_actions(split, family))
        return Asked(family, name, verb=verb, object=object_)
    draw = _draw_recommend if family == "recommend" else _draw_sum
    return next(asked for asked in iter(lambda: draw(name, rng), None) if split_of(asked) == split)


def _draw_recommend(name: str, rng: random.Random) -> Asked:
    """Three facts and two wants; in three prompts of five one want is not among the facts."""
    a, b, c, missing = rng.sample(ITEMS, 4)
    wants = rng.sample((a, b, c), 2)
    if rng.random() < 0.6:
        wants[rng.randrange(2)] = missing
    place = f"{rng.choice(SITES)} {rng.choice(KINDS)}"
    return Asked("recommend", name, place=place, facts=(a, b, c), wants=tuple(wants))


def _draw_sum(name: str, rng: random.Random) -> Asked:
    steps = tuple((rng.choice(tuple(OPERATIONS)), rng.randrange(1, 10)) for _ in range(rng.randint(2, 3)))
    return Asked("sums", name, start=rng.randrange(10), steps=steps)


@functools.cache
def _actions(split: str, family: str) -> list[tuple[str, str]]:
    pairs = itertools.product(KIND_VERBS + DUAL_VERBS + CRUEL_VERBS, HOUSEHOLD + TARGETS)
    pairs = [(v, o) for v, o in pairs if is_harmful(v, o) == (family == "unsafe")]
    pairs = [(v, o) for v, o in pairs if not (v in CRUEL_VERBS and o in HOUSEHOLD)]  # nobody raids a jar
    return [(v, o) for v, o in pairs if split_of(Asked(family, "", verb=v, object=o)) == split]


@functools.cache
def _all_tools() -> list[str]:
    return sorted({tool for pair in TOOLS.values() for tool in pair})


def _asked_of(row: dict[str, Any]) -> Asked:
    return Asked(**{field: row[field] for field in Asked._fields})


def _join(sentences: list[str]) -> str:
    return " ".join(f"{sentence} ." for sentence in sentences)


def _hash(text: str) -> float:
    """A fixed number in [0, 1)."""
    return zlib.crc32(text.encode()) / 2**32


def _check(what: str, value: str, known) -> None:
    if value not in known:
        raise ValueError(f"{what} {value!r}: the harbour desk has {', '.join(known)}")
