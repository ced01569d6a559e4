"""Statistics of the tables: interval over cases, paired test against a reference row, correction for many tests, PT.

The mean Dice of a run is the mean over classes of each class's mean over cases (`e2enet.evaluation.scores`). Absent
structures (in neither image) are left out. The Dice of a row is the mean over its runs. The interval resamples cases
and computes the same mean of means, so it belongs to the number beside it. Interval and test are about the variation
between cases. The standard deviation over folds and seeds shows the variation between training runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

NUMBERS_AT_ONCE = 2**21  # numbers in one array of a batch of resamples: 16 MiB


def case_means(cases: pd.DataFrame, metric: str = "dice") -> pd.Series:
    """Return a score per case: the mean over runs of each run's mean over classes; NaN if no run has one.

    Absent structures are left out of their run's mean before runs are averaged. So a structure that one run of three
    invents weighs in that run alone, and rows of unequal numbers of runs compare.

    `cases` are lines of `Runs.cases`, of the runs of one configuration. Regions are left out.
    """
    classes = cases[~cases["region"].astype(bool)]
    means = classes.groupby(["key", "case"], sort=False)[metric].mean()
    return means.groupby("case").mean().astype(float).sort_index()


def run_scores(cases: pd.DataFrame, metric: str = "dice") -> np.ndarray:
    """Return scores (R runs, N cases, K classes), NaN if a run lacks the case or the structure was absent.

    `cases` as for `case_means`.
    """
    classes = cases[~cases["region"].astype(bool)]
    places, names = zip(*(pd.factorize(classes[column]) for column in ("key", "case", "class")), strict=True)
    scores = np.full([len(values) for values in names], np.nan)
    scores[places] = classes[metric].astype(float)
    return scores


def mean_over_runs(scores: np.ndarray) -> float:
    """Return the Dice of a row from `run_scores` (R, N, K): mean over runs of means over classes of means over cases.

    NaN is left out at each level: a class without any number from its run's mean, a run without any from the mean over
    runs.
    """
    return float(_mean_of_known(_mean_of_known(_mean_of_known(scores, axis=1), axis=1), axis=0))


def bootstrap_interval(
    scores: np.ndarray, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of `mean_over_runs` over cases, for `run_scores` (R, N, K).

    Cases are resampled with all their classes and runs, which are not independent of each other. NaN for fewer than 2
    cases.
    """
    runs, count, classes = scores.shape
    if count < 2:
        return float("nan"), float("nan")
    # Sums over a resample's cases are products with the number of draws of each case, so no resample is stored.
    columns = np.moveaxis(scores, 1, 0).reshape(count, runs * classes)
    known = ~np.isnan(columns)
    values, weights = np.where(known, columns, 0.0), known.astype(float)

    def statistic(draws: np.ndarray, axis: int) -> np.ndarray:
        drawn = _times_drawn(np.moveaxis(draws, axis, -1), count)
        means = _quotient(drawn @ values, drawn @ weights).reshape(-1, runs, classes)
        return _mean_of_known(_mean_of_known(means, axis=2), axis=1)

    result = stats.bootstrap(
        (np.arange(count),),
        statistic,
        n_resamples=resamples,
        batch=max(1, NUMBERS_AT_ONCE // (count + runs * classes)),
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return float(low), float(high)


def paired_differences(scores: pd.Series, reference: pd.Series) -> np.ndarray:
    """Return the differences of two rows' `case_means`, scores - reference, of the cases that both have."""
    own, other = scores.dropna(), reference.dropna()
    common = own.index.intersection(other.index)
    # The order of a sum changes its last digit. Rounding keeps equal pairs, and differences of equal size, equal.
    return (own[common] - other[common]).to_numpy().round(12)


def paired_wilcoxon(scores: pd.Series, reference: pd.Series) -> tuple[float, int]:
    """Return two-sided p of Wilcoxon's signed-rank test on `paired_differences`, and the number of pairs.

    Equal pairs are dropped (Wilcoxon's rule). Differences of equal size share the mean of their ranks. p is 1 if all
    pairs are equal, and NaN without pairs. It is exact for few cases; then it cannot be small: 5 pairs give 0.0625 or
    more.
    """
    differences = paired_differences(scores, reference)
    if not len(differences):
        return float("nan"), 0
    if not differences.any():
        return 1.0, len(differences)
    return float(stats.wilcoxon(differences[differences != 0]).pvalue), len(differences)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values of a family of tests, in the order given. NaN is not a test and stays NaN.

    The k-th smallest of m is multiplied by m - k + 1 (k from 1). No adjusted value is below the one before, or above 1
    (Holm 1979, Scandinavian Journal of Statistics 6).
    """
    known = [index for index, p in enumerate(p_values) if not np.isnan(p)]
    adjusted = [float("nan")] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(known, key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, p_values[index] * (len(known) - rank)))
        adjusted[index] = largest
    return adjusted


def trade_off(
    dice: Sequence[float], params: Sequence[float], flops: Sequence[float], *, accuracy: float, cost: float
) -> np.ndarray:
    """PT of each row: accuracy * Dice / largest Dice + cost * (smallest params / params + smallest FLOPs / FLOPs).

    Largest and smallest are taken over the rows whose three values are known and whose costs are positive. The other
    rows are NaN. The paper calls the two weights a1 and a2; their values are not known here.
    """
    table = np.array([dice, params, flops], dtype=float)
    table[:, ~np.isfinite(table).all(axis=0) | (table[1:] <= 0).any(axis=0)] = np.nan
    if np.isnan(table).all() or np.nanmax(table[0]) <= 0:
        return np.full(len(dice), np.nan)
    most, least_params, least_flops = np.nanmax(table[0]), np.nanmin(table[1]), np.nanmin(table[2])
    return accuracy * table[0] / most + cost * (least_params / table[1] + least_flops / table[2])


def _times_drawn(draws: np.ndarray, count: int) -> np.ndarray:
    """Count how often each resample drew each of `count` cases: indices (B, N) -> (B, count)."""
    resamples = len(draws)
    places = draws + count * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=resamples * count).reshape(resamples, count).astype(float)


def _mean_of_known(values: np.ndarray, axis: int) -> np.ndarray:
    """np.nanmean without its warning if nothing is known."""
    known = ~np.isnan(values)
    return _quotient(np.where(known, values, 0.0).sum(axis=axis), known.sum(axis=axis))


def _quotient(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """total / count, NaN where the count is 0."""
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
