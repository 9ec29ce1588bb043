"""Annotators: who prefers one reply to another, and how unreliably."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from alignax.worlds.gold import PARTS

MODES = ("bradley_terry", "deterministic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotator:
    """A labeller with known faults. The utility gap is d = w . (parts_a - parts_b) + b (len_a - len_b) + u.

    `bradley_terry`: P(a > b) = (1 - eps) sigma(d / T) + eps / 2. `deterministic`: sigma(d / T) becomes 1, 0, or 1/2
    on a tie. Parts that `weights` does not name have weight 1.
    """

    mode: str = "bradley_terry"
    temperature: float = 1.0  # T, in units of gold reward
    flips: float = 0.0  # eps: share of labels replaced by a fair coin
    length_bias: float = 0.0  # b, reward per token
    position_bias: float = 0.0  # u, reward of being shown first
    weights: tuple[tuple[str, float], ...] = ()  # ((part, weight), ...)
    tie_below: float = 0.0  # a utility gap smaller than this is called a tie, in units of gold reward

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"annotator mode {self.mode!r}: expected one of {', '.join(MODES)}")
        if not self.temperature > 0:
            raise ValueError(
                f"annotator temperature {self.temperature}: expected > 0; for no noise use 'deterministic'"
            )
        if not 0 <= self.flips <= 1:
            raise ValueError(f"annotator flips {self.flips}: expected a share in [0, 1]")
        if self.tie_below < 0:
            raise ValueError(f"annotator tie_below {self.tie_below}: expected 0 (no ties) or a gap of gold reward")
        unknown = {part for part, _ in self.weights} - set(PARTS)
        if unknown:
            raise ValueError(f"annotator weights name {sorted(unknown)}; the parts are {', '.join(PARTS)}")


def utility_gap(
    annotator: Annotator, parts_a: Mapping[str, float], parts_b: Mapping[str, float], len_a: int, len_b: int
) -> float:
    """How much better the annotator finds `a`, d of `Annotator`, in units of gold reward."""
    weights = dict(annotator.weights)
    gap = sum(weights.get(part, 1.0) * (parts_a[part] - parts_b[part]) for part in PARTS)
    return gap + annotator.length_bias * (len_a - len_b) + annotator.position_bias


def preference(
    annotator: Annotator, parts_a: Mapping[str, float], parts_b: Mapping[str, float], len_a: int, len_b: int
) -> float:
    """P(a > b) of `Annotator` for two replies to one prompt, given their gold parts and lengths in tokens."""
    gap = utility_gap(annotator, parts_a, parts_b, len_a, len_b)
    if annotator.mode == "deterministic":
        gap = 0.0 if abs(gap) < 1e-9 else gap  # equal parts summed in another order are a tie
        clean = 0.5 * (1.0 + np.sign(gap))
    else:
        clean = 0.5 * (1.0 + math.tanh(0.5 * gap / annotator.temperature))  # sigma, without overflow
    return float((1.0 - annotator.flips) * clean + 0.5 * annotator.flips)


def prefer(
    annotator: Annotator,
    parts_a: Mapping[str, float],
    parts_b: Mapping[str, float],
    len_a: int,
    len_b: int,
    rng: np.random.Generator,
) -> bool:
    """One label: True if `a` is preferred. Draws exactly one number, so that labels stay paired across annotators."""
    return bool(rng.random() < preference(annotator, parts_a, parts_b, len_a, len_b))


def rank(
    annotator: Annotator, parts: Sequence[Mapping[str, float]], lengths: Sequence[int], rng: np.random.Generator
) -> list[int]:
    """The order of K replies to one prompt, best first, by an annotator who sees them all at once.

    A reply is as good as its noisy utility u_i / T + g_i, with u_i = w . parts_i + b len_i (+ u for the first shown)
    and g_i standard Gumbel: picking the best again and again is then Plackett-Luce with worths e^{u_i / T} (Yellott
    1977), under which any two replies stand as `preference` says, P(i before j) = sigma((u_i - u_j) / T).
    `deterministic` sorts by u_i, equal ones in random order. With probability eps (`flips`) the whole order is replaced
    by a random one, which of a pair is the fair coin of `Annotator`; so every pair of a ranking is at chance eps of the
    time, as a single pair is, but all of them together. Draws exactly K + 1 numbers.
    """
    weights, noise_K, blind = dict(annotator.weights), rng.gumbel(size=len(parts)), rng.random() < annotator.flips
    utility_K = np.array([sum(weights.get(part, 1.0) * values[part] for part in PARTS) for values in parts])
    utility_K = utility_K + annotator.length_bias * np.asarray(lengths)
    utility_K[:1] += annotator.position_bias
    if blind:
        return np.argsort(-noise_K).tolist()
    if annotator.mode == "deterministic":
        return np.lexsort((noise_K, -np.round(utility_K, 9))).tolist()  # the last key is the first to sort by
    return np.argsort(-(utility_K / annotator.temperature + noise_K)).tolist()
