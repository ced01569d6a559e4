"""Effect sizes against a published example, enumerations and order statistics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from e2enet.report.results.effects import median_interval, rank_biserial

# Darwin's maize: heights of 15 pairs of plants, crossed minus self-fertilised, in eighths of an inch. SciPy's reference
# of `wilcoxon` gives 24 as the sum of negative ranks, of 120 in all.
MAIZE = np.array([6.0, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75])


def test_rank_biserial_of_darwin_s_maize() -> None:
    assert stats.wilcoxon(MAIZE).statistic == 24
    assert rank_biserial(MAIZE) == pytest.approx((96 - 24) / 120)
    assert rank_biserial(-MAIZE) == pytest.approx(-0.6)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1, 2, 3], 1),
        ([-0.5, -0.1], -1),
        ([1, -1], 0),
        ([0, 0, 2, -1], 1 / 3),  # zeros are dropped: ranks 2 and -1 of 3
        ([1, 1, -1, 3], (2 + 2 - 2 + 4) / 10),  # three of equal size have rank 2
        ([0, 0], 0),
    ],
)
def test_rank_biserial_by_hand(differences: list[float], expected: float) -> None:
    assert rank_biserial(np.array(differences, dtype=float)) == pytest.approx(expected)


def test_median_interval_is_of_all_resamples() -> None:
    # Three cases have 27 resamples: 7 have the median 1, 13 have 2 and 7 have 6.
    medians = [np.median(drawn) for drawn in itertools.product([1.0, 2.0, 6.0], repeat=3)]
    assert sorted(medians) == [1] * 7 + [2] * 13 + [6] * 7
    assert median_interval(np.array([6.0, 1.0, 2.0]), confidence=0.7) == (2, 1, 6)
    assert median_interval(np.array([6.0, 1.0, 2.0]), confidence=0.4) == (2, 2, 2)


def test_median_interval_ends_at_order_statistics() -> None:
    # The median of n draws is at most the k-th smallest case if most draws are among the k smallest.
    cases = np.random.default_rng(0).permutation(np.arange(1.0, 42.0))
    median, low, high = median_interval(cases, resamples=20_000, seed=3)
    shares = [stats.binom.sf(20, 41, k / 41) for k in range(1, 42)]
    expected = [1 + next(k for k, share in enumerate(shares) if share >= tail) for tail in (0.025, 0.975)]
    assert median == 21 and [low, high] == expected


def test_median_interval_depends_on_its_seed_alone_and_shrinks_with_confidence() -> None:
    differences = np.random.default_rng(1).normal(size=30)
    intervals = [[median_interval(differences, seed=seed, resamples=100) for seed in range(10)] for _ in range(2)]
    assert intervals[0] == intervals[1] and len(set(intervals[0])) > 1
    _, low, high = median_interval(differences, confidence=0.95)
    _, inner_low, inner_high = median_interval(differences, confidence=0.5)
    assert low < inner_low < inner_high < high


def test_zeros_count_in_the_median() -> None:
    assert median_interval(np.array([0.0, 0, 0, 0, 5]))[0] == 0
    assert median_interval(np.zeros(6)) == (0, 0, 0)


def test_too_few_cases() -> None:
    assert math.isnan(rank_biserial(np.array([])))
    assert all(math.isnan(value) for value in median_interval(np.array([])))
    median, low, high = median_interval(np.array([0.5]))
    assert median == 0.5 and math.isnan(low) and math.isnan(high)


def test_cases_whose_whole_range_is_no_interval_have_none() -> None:
    # The range of n cases leaves the median out if all are on one side of it: with a chance of 2 / 2^n.
    five, six = np.arange(5.0), np.arange(6.0)
    assert math.isnan(median_interval(five)[1]) and median_interval(five)[0] == 2
    assert all(map(math.isfinite, median_interval(six)))
    assert all(map(math.isfinite, median_interval(five, confidence=0.93)))
