"""Compare three methods or more over the same cases by ranks: Friedman's test, then Nemenyi's for every pair.

Each case ranks the methods by score: 1 for the best, the mean rank for equal ones. Cases are the blocks of the test.
Two methods differ if their mean ranks are at least a critical distance apart. Source: Demsar 2006, Journal of Machine
Learning Research 7, section 3.2.2. The studentised range is SciPy's; the packages that offer the whole test bring
statsmodels and seaborn for these few lines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from e2enet.common.errors import InputError

MIN_METHODS = 3
# Both distributions are approximations for many cases. Simulated with 3 to 12 equal methods at a level of 5 %, either
# test is significant in 6 % or less from 5 cases on; Friedman's is in 7 % with 4 cases and 3 methods.
MIN_CASES = 5


@dataclass(frozen=True)
class RankTest:
    """Friedman's and Nemenyi's tests of K methods over N cases.

    Attributes:
        mean_ranks: Mean rank of each method over the cases, best first; 1 is the best possible.
        cases: N, the cases that all methods share.
        statistic: Friedman's chi-squared with K - 1 degrees of freedom, corrected for ties.
        p: Its p: how likely such a statistic is if no method differs from another.
        agreement: Kendall's W, the effect size: 1 if all cases rank the methods alike, 0 if their order is by chance.
        critical_distance: Difference of mean ranks from which on two methods differ.
        pairs: Nemenyi's p of each pair (K, K), in the order of `mean_ranks`; already corrected for all pairs.
        alpha: Level of the tests.
    """

    mean_ranks: pd.Series
    cases: int
    statistic: float
    p: float
    agreement: float
    critical_distance: float
    pairs: pd.DataFrame
    alpha: float

    @property
    def is_significant(self) -> bool:
        """Whether Friedman's test finds any difference. If not, no pair is said to differ, as the test is post hoc."""
        return self.p < self.alpha

    def differ(self, first: str, second: str) -> bool:
        """Whether two methods are told apart: they share no group."""
        return not any(first in group and second in group for group in self.groups())

    def groups(self) -> list[list[str]]:
        """Return the largest runs of methods, in the order of `mean_ranks`, among which no two differ.

        A method may be in several of them, or in one of its own.
        """
        if not self.is_significant:
            return [list(self.mean_ranks.index)]
        ranks = self.mean_ranks.to_numpy()
        found: list[tuple[int, int]] = []
        for start, rank in enumerate(ranks):
            # Ranks are sorted. The last digit of a sum must not part two methods.
            end = int(np.searchsorted(ranks, rank + self.critical_distance - 1e-12))
            if not found or end > found[-1][1]:
                found.append((start, end))
        return [list(self.mean_ranks.index[start:end]) for start, end in found]


def rank_test(scores: pd.DataFrame, *, alpha: float = 0.05, largest_best: bool = True) -> RankTest:
    """Test whether methods differ over cases.

    Args:
        scores: A line per case (N), a column per method (K). Cases that a method lacks (NaN) are left out for all.
        alpha: Level of both tests, in (0, 1).
        largest_best: Whether a larger score is better (Dice, NSD) or a smaller one (HD95).

    Raises:
        InputError: fewer than 3 methods, two of the same name, or fewer than 5 cases that all of them share.
    """
    shared = scores.dropna()
    cases, methods = shared.shape
    if not scores.columns.is_unique:
        raise InputError(
            f"ranks need a name for each method; two are called alike among {', '.join(map(str, scores.columns))}"
        )
    if methods < MIN_METHODS:
        raise InputError(f"Friedman's test needs {MIN_METHODS} methods or more; got {methods}")
    if cases < MIN_CASES:
        counts = ", ".join(f"{name}: {count}" for name, count in scores.notna().sum().items())
        raise InputError(
            f"Friedman's and Nemenyi's tests need {MIN_CASES} cases or more that all methods have; got {cases} "
            f"(cases of each: {counts})"
        )
    # The order of a sum changes its last digit. Rounding keeps equal scores equal.
    values = shared.to_numpy(dtype=float).round(12)
    ranks = stats.rankdata(-values if largest_best else values, axis=1)
    mean_ranks = pd.Series(ranks.mean(axis=0), index=shared.columns).sort_values(kind="stable")
    # All methods are alike in every case: SciPy would divide by zero.
    statistic, p = (0.0, 1.0) if (ranks == ranks[:, :1]).all() else stats.friedmanchisquare(*ranks.T)
    error = math.sqrt(methods * (methods + 1) / (6 * cases))
    distances = np.abs(np.subtract.outer(mean_ranks.to_numpy(), mean_ranks.to_numpy()))
    pairs = stats.studentized_range.sf(math.sqrt(2) * distances / error, methods, np.inf)
    return RankTest(
        mean_ranks=mean_ranks,
        cases=cases,
        statistic=float(statistic),
        p=float(p),
        agreement=float(statistic) / (cases * (methods - 1)),
        critical_distance=critical_distance(methods, cases, alpha=alpha),
        pairs=pd.DataFrame(pairs, mean_ranks.index, mean_ranks.index),
        alpha=alpha,
    )


def critical_distance(methods: int, cases: int, *, alpha: float = 0.05) -> float:
    """Return Nemenyi's critical distance of mean ranks: q sqrt(K (K + 1) / 6 N).

    q is the upper `alpha` quantile of the studentised range of K means, divided by sqrt 2.
    """
    q = float(stats.studentized_range.ppf(1 - alpha, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * cases))
