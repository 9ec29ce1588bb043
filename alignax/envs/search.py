"""Search over a small local corpus: a JSON-lines file, ranked by BM25."""

import functools
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from alignax.ops.checks import require

# of BM25: how soon more of a word says no more, and how much length counts (Robertson & Zaragoza 2009)
K1, B = 1.2, 0.75


class Index(NamedTuple):
    """A corpus by its words."""

    texts: tuple[str, ...]
    counts: tuple[Counter, ...]  # words of each
    holds: Counter  # how many texts hold a word
    mean: float  # words of a text

    def score(self, query: list[str], i: int) -> float:
        """BM25 of a text for a query,

            sum_w log(1 + (N - n_w + 1/2) / (n_w + 1/2)) f_w (k1 + 1) / (f_w + k1 (1 - b + b |text| / mean))

        over the words w of the query: f_w how often the text has it, n_w how many of the N texts do.
        """
        counts, N = self.counts[i], len(self.texts)
        length = K1 * (1 - B + B * sum(counts.values()) / self.mean)
        rare = {word: math.log(1 + (N - n + 0.5) / (n + 0.5)) for word in set(query) if (n := self.holds[word])}
        return sum((weight * counts[word] * (K1 + 1) / (counts[word] + length) for word, weight in rare.items()), 0.0)

    def best(self, query: str, count: int) -> list[str]:
        """The texts of the highest score, those without any word of the query left out; the earlier of equal ones."""
        words = words_of(query)
        scores = [(-self.score(words, i), i) for i in range(len(self.texts))]
        return [self.texts[i] for score, i in sorted(scores)[:count] if score < 0]


class Search:
    """A policy asks for passages of a corpus; its answer is for a reward over text to judge.

    Args:
      corpus: a JSON-lines file; each line has a text, or a title and a text.
      field: of a line, its text.
      count: passages of one answer.
    """

    def __init__(self, *, corpus: str, field: str = "text", count: int = 3):
        require(count >= 1, f"count = {count}: expected 1 passage or more")
        self.index, self.count = index_of(corpus, field), count

    def reset(self, **row: Any) -> None:
        """Nothing is kept from one search to the next."""

    def search(self, query: str) -> str:
        """
        The passages that have most to do with a query.

        Args:
            query: a few words
        """
        found = self.index.best(query, self.count)
        return "\n".join(f"[{i + 1}] {text}" for i, text in enumerate(found)) or "nothing was found"


@functools.lru_cache(maxsize=8)
def index_of(corpus: str, field: str) -> Index:
    """The index of a file, made once. Raises ValueError for a line without the field, or a file without lines."""
    texts = []
    for number, line in enumerate(Path(corpus).expanduser().read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            require(field in row, f"corpus {corpus}, line {number}: expected the field {field!r}, found {sorted(row)}")
            texts.append(f"{row['title']}: {row[field]}" if "title" in row and field != "title" else str(row[field]))
    require(bool(texts), f"corpus {corpus}: expected a line of JSON for each text, found none")
    counts = tuple(Counter(words_of(text)) for text in texts)
    mean = sum(sum(one.values()) for one in counts) / len(counts)
    return Index(tuple(texts), counts, Counter(word for one in counts for word in one), max(mean, 1.0))


def words_of(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return re.findall(r"\w+", text.lower())
