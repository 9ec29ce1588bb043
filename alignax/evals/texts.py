"""How the texts of a policy are: how alike they are, and which phrases they fall back on."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ORDERS = 4  # of the runs of words that BLEU counts
SMOOTHING = 0.1  # counted for an order of which no run is found (Chen & Cherry 2014, W14-3346, method 1)

# openings and hedges that models fall back on; a config gives its own, in its own language
PHRASES = {
    "sycophancy": (
        "great question", "good question", "excellent question", "you're absolutely right", "you are absolutely right",
        "you're right", "what a great", "what a wonderful", "i completely agree", "i'm so glad you asked",
    ),
    "hedging": (
        "it depends", "i'm not sure", "i am not sure", "it's important to note", "it is important to note", "as an ai",
        "i cannot say for certain", "may or may not", "generally speaking", "it could be argued", "to some extent",
    ),
}  # fmt: skip


def self_bleu(texts: Sequence[str]) -> float:
    """The mean BLEU of each text, all others its references: 1 where all are alike (Zhu et al. 2018, 1802.01886).

        BLEU = min(1, exp(1 - r / c)) exp(mean over n = 1..4 of log p_n)

    p_n: the share of the text's runs of n words that stand in a reference, each counted at most as often as in the one
    that has it most; c: its words; r: those of the reference nearest in length (Papineni et al. 2002, equations 1-3).
    Orders of which a text has no run are left out, texts without words too. nan for fewer than two texts. Libraries of
    BLEU count all references anew for each text: of 512 replies that takes seconds at every evaluation.
    """
    split = [words for text in texts if (words := text.lower().split())]
    if len(split) < 2:
        return math.nan
    counts = [[_runs(words, n) for words in split] for n in range(1, ORDERS + 1)]
    most = [_two_most(one) for one in counts]
    lengths = np.array([len(words) for words in split])
    return float(np.mean([_bleu(i, counts, most, lengths) for i in range(len(split))]))


def _runs(words: Sequence[str], n: int) -> Counter:
    return Counter(zip(*(words[i:] for i in range(n))))


def _two_most(counts: Sequence[Counter]) -> dict[Any, tuple[int, int, int]]:
    """{run: (how often in the text that has it most, which text that is, how often in any other at most)}."""
    out: dict[Any, tuple[int, int, int]] = {}
    for i, counter in enumerate(counts):
        for run, count in counter.items():
            first, which, second = out.get(run, (0, -1, 0))
            out[run] = (count, i, first) if count > first else (first, which, max(second, count))
    return out


def _bleu(i: int, counts: Sequence[Sequence[Counter]], most: Sequence[dict], lengths: np.ndarray) -> float:
    logs = []
    for counter, found in zip((one[i] for one in counts), most):
        if not counter:
            continue
        others = ((count, found[run]) for run, count in counter.items())
        hits = sum(min(count, second if which == i else first) for count, (first, which, second) in others)
        logs.append(math.log((hits or SMOOTHING) / counter.total()))
    c, rest = lengths[i], np.delete(lengths, i)
    r = min(rest, key=lambda length: (abs(length - c), length))
    return math.exp(min(0.0, 1 - r / c) + sum(logs) / len(logs))


def shares(texts: Sequence[str], phrases: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """{kind: share of the texts that hold one of its phrases}; case, and how words are spaced, do not matter."""
    plain = [f" {' '.join(text.lower().split())} " for text in texts]
    holds = lambda text, kind: any(" ".join(phrase.lower().split()) in text for phrase in phrases[kind])  # noqa: E731
    return {kind: float(np.mean([holds(text, kind) for text in plain])) for kind in phrases}
