"""Effect sizes of a paired comparison: p says whether a difference is by chance, these say how large it is.

Both take the differences of `paired_differences`, one per case.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from e2enet.report.results.statistics import NUMBERS_AT_ONCE


def rank_biserial(differences: np.ndarray) -> float:
    """Return the matched-pairs rank-biserial correlation, the effect size of Wilcoxon's signed-rank test.

    It is the sum of the ranks of positive differences minus that of negative ones, divided by the sum of all ranks: 1
    if every case is better, -1 if every case is worse, 0 if they balance. As in the test, zeros are dropped and
    differences of equal size share their mean rank (Kerby 2014, Comprehensive Psychology 3). It is 0 if all
    differences are zero, and NaN without any.
    """
    if not len(differences):
        return float("nan")
    kept = differences[differences != 0]
    if not len(kept):
        return 0.0
    ranks = stats.rankdata(np.abs(kept))
    return float((np.sign(kept) * ranks).sum() / ranks.sum())


def median_interval(
    differences: np.ndarray, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Return the median difference and its percentile bootstrap interval over cases: median, low, high.

    Zeros count, other than in the test. The median is NaN without any case. The interval is NaN for so few (fewer than
    6 at 95 %) that not even the range from the smallest to the largest covers the median as often as `confidence` says.
    """
    count = len(differences)
    median = float(np.median(differences)) if count else float("nan")
    if 1 - 2.0 ** (1 - count) < confidence:
        return median, float("nan"), float("nan")
    result = stats.bootstrap(
        (differences,),
        np.median,
        n_resamples=resamples,
        batch=max(1, NUMBERS_AT_ONCE // count),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return median, float(low), float(high)
