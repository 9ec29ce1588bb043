"""Confidence intervals: bootstrap over prompts, and Student's t over seeds."""

from collections.abc import Sequence

import numpy as np


def bootstrap(
    values: Sequence[float] | np.ndarray,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 95.0,
) -> list[float]:
    """[low, high] of the mean by the percentile bootstrap: rows (prompts) are drawn again with replacement.

    `weights` of the rows make it the weighted mean, over steps, say: those of one row are no independent draws.
    Deterministic in `seed`. The interval speaks of other prompts to the same policy, not of other training seeds.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"bootstrap of an array of shape {values.shape}: expected one value per prompt, at least one")
    rng = np.random.Generator(np.random.Philox(seed))
    drawn = rng.integers(0, len(values), (resamples, len(values)))
    if weights is None:
        means = values[drawn].mean(axis=1)
    else:
        weights = np.asarray(weights, np.float64)
        means = (values * weights)[drawn].sum(axis=1) / np.maximum(weights[drawn].sum(axis=1), 1e-30)
    tail = (100 - level) / 2
    return [float(x) for x in np.percentile(means, [tail, 100 - tail])]


# two-sided 97.5 % points of Student's t, by degrees of freedom: what an interval over few seeds needs
_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def over_seeds(values: Sequence[float]) -> list[float]:
    """[low, high]: 95 % t-interval of the mean over 2 to 11 independent seeds."""
    x = np.asarray(values, np.float64)
    if not 2 <= len(x) <= len(_T975) + 1:
        raise ValueError(f"{len(x)} seeds: expected 2 to {len(_T975) + 1} for a t-interval")
    half = _T975[len(x) - 2] * x.std(ddof=1) / len(x) ** 0.5
    return [float(x.mean() - half), float(x.mean() + half)]


def spread(values: Sequence[float | int]) -> dict:
    """{"mean", "ci95"} over seeds: the interval of `over_seeds`, None for a single seed."""
    return {"mean": float(np.mean(values)), "ci95": over_seeds([float(x) for x in values]) if len(values) > 1 else None}
