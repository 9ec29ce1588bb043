"""Self-BLEU by hand and against the plain definition; phrases of a word list."""

import math
from collections import Counter

import pytest

from alignax.evals.texts import SMOOTHING, self_bleu, shares

TEXTS = [
    "the cat sat on the mat",
    "the cat sat on the red mat today",
    "a dog ran in the park",
    "the the the the",
    "cat",
]


def plain_bleu(words, references):
    """BLEU-4 as Papineni et al. define it, one loop per sign of the formula."""
    logs = []
    for n in range(1, 5):
        runs = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        if not runs:
            continue
        clipped = 0
        for run, count in runs.items():
            most = max(sum(tuple(r[i : i + n]) == run for i in range(len(r) - n + 1)) for r in references)
            clipped += min(count, most)
        logs.append(math.log((clipped or SMOOTHING) / sum(runs.values())))
    nearest = min(sorted(map(len, references)), key=lambda r: abs(r - len(words)))
    return math.exp(min(0.0, 1 - nearest / len(words))) * math.exp(sum(logs) / len(logs))


def test_self_bleu_is_the_mean_over_the_plain_definition():
    split = [text.split() for text in TEXTS]
    expected = [plain_bleu(words, split[:i] + split[i + 1 :]) for i, words in enumerate(split)]
    assert self_bleu(TEXTS) == pytest.approx(sum(expected) / len(expected))


def test_self_bleu_by_hand():
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1.0)
    # "a b" against "a c": p1 = 1/2, p2 = 0.1/1; lengths are equal; and the same the other way round
    assert self_bleu(["a b", "A  c"]) == pytest.approx(math.sqrt(0.5 * 0.1))
    # one word that is there, but half as long as its reference: exp(1 - 2/1); the other: p1 = 1/2, p2 = 0.1
    assert self_bleu(["a", "a b"]) == pytest.approx((math.exp(-1) + math.sqrt(0.5 * 0.1)) / 2)
    assert math.isnan(self_bleu(["alone", "", "  "]))


def test_phrases():
    texts = ["Great   question! It depends.", "no", "it dependson"]
    found = shares(texts, {"sycophancy": ("great question",), "hedging": ("it depends.", "x y")})
    assert found == {"sycophancy": pytest.approx(1 / 3), "hedging": pytest.approx(1 / 3)}
