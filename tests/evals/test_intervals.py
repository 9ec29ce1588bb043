"""Bootstrap and t-intervals against numbers worked out by hand, and coverage."""

import numpy as np
import pytest
from errors import refuses

from alignax.evals.intervals import bootstrap, over_seeds


def test_bootstrap_repeats_and_another_seed_gives_another_interval():
    values = np.random.default_rng(0).normal(size=40)
    assert bootstrap(values) == bootstrap(values) != bootstrap(values, seed=1)


def test_bootstrap_of_equal_values_is_a_point_and_of_one_value_as_well():
    assert bootstrap([2.5] * 7) == [2.5, 2.5] == bootstrap([2.5])


def test_bootstrap_has_about_the_width_of_the_normal_interval():
    # 400 values of variance 1/4 (a fair coin): 1.96 * 0.5 / 20 = 0.049 on each side
    low, high = bootstrap([0.0, 1.0] * 200, resamples=8000)
    np.testing.assert_allclose([low, high], [0.451, 0.549], atol=0.006)
    narrow = bootstrap([0.0, 1.0] * 200, level=50.0)
    np.testing.assert_allclose(narrow, [0.5 - 0.674 * 0.025, 0.5 + 0.674 * 0.025], atol=0.005)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    # 300 samples of 40 from a skewed distribution of mean 1: 95 % nominal, a few per cent less at this size
    rng = np.random.default_rng(1)
    inside = [
        low <= 1 <= high for low, high in (bootstrap(rng.exponential(size=40), resamples=500) for _ in range(300))
    ]
    assert 0.88 <= np.mean(inside) <= 0.98


@pytest.mark.parametrize("values, shape", [([], "(0,)"), ([[1.0, 2.0]], "(1, 2)"), (3.0, "()")])
def test_bootstrap_refuses_what_is_not_one_value_per_prompt(values, shape):
    with refuses(ValueError, f"shape {shape}:", "one"):
        bootstrap(np.array(values))


def test_over_seeds_by_hand():
    # [1, 2, 3]: mean 2, sd 1, t(2) = 4.303: half width 4.303 / 3^0.5 = 2.4843
    np.testing.assert_allclose(over_seeds([1.0, 2.0, 3.0]), [2 - 2.48434, 2 + 2.48434], atol=1e-4)
    # [0, 2]: mean 1, sd 2^0.5, t(1) = 12.706: half width 12.706
    np.testing.assert_allclose(over_seeds([0.0, 2.0]), [1 - 12.706, 1 + 12.706], rtol=1e-6)
    # eleven seeds, the most that the table holds: t(10) = 2.228
    values = np.arange(11.0)
    half = 2.228 * values.std(ddof=1) / 11**0.5
    np.testing.assert_allclose(over_seeds(values.tolist()), [5 - half, 5 + half], rtol=1e-9)


@pytest.mark.parametrize("count", [0, 1, 12])
def test_over_seeds_refuses_counts_without_an_interval(count):
    with refuses(ValueError, f"{count} seeds", "2 to 11"):
        over_seeds([1.0] * count)
