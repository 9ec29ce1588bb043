"""Rewards for how a reply is, whatever it says: its length and its repetitions. Over text (`rewards.text`)."""

from alignax.ops.checks import require


def length(row: dict, completion: str, *, finished: bool, least: int = 0, most: int = 64, fall: int = 32) -> float:
    """0 for a reply of `least` to `most` words, falling by 1 over every `fall` words that it is shorter or longer.

    Raises ValueError unless 0 <= least <= most and fall >= 1.
    """
    del row, finished
    require(0 <= least <= most, f"least = {least}, most = {most}: expected 0 <= least <= most, in words")
    require(fall >= 1, f"fall = {fall}: expected 1 word or more")
    words = len(completion.split())
    return -max(least - words, words - most, 0) / fall


def repetition(row: dict, completion: str, *, finished: bool, n: int = 3) -> float:
    """Minus the share of a reply's runs of n words that have stood in it before; 0 without any.

    The n-gram penalty of Yeo et al. 2025 (2502.03373, appendix) without its scale. Raises ValueError unless n >= 1.
    """
    del row, finished
    require(n >= 1, f"n = {n}: expected 1 word or more")
    words = completion.split()
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(runs)) / len(runs) - 1.0 if runs else 0.0


def ended(row: dict, completion: str, *, finished: bool) -> float:
    """1 for a reply that came to its end, 0 for one that was cut off."""
    del row, completion
    return float(finished)
