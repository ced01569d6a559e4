"""Statistics of the tables: interval over cases, paired test against a reference row, correction for many tests, PT.

The mean Dice of a run is the mean over classes of the class's mean over cases (`e2enet.evaluation.scores`), where
absent structures (in neither image) count nowhere. The interval resamples cases and computes that same mean, so that
it belongs to the number beside it. It and the test are about cases. What another training run would give is another
question, which the standard deviation over folds and seeds answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats


def case_class_means(cases: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """Scores (N cases, K classes): each the mean over the runs that scored the case, NaN where it was absent in all.

    `cases` has the columns of `Runs.cases`, of the runs of one configuration; regions are left out.
    """
    classes = cases[~cases["region"].astype(bool)]
    means = classes.groupby(["case", "class"], sort=False)[metric].mean()
    return means.unstack("class").astype(float).sort_index()


def mean_over_classes(scores: np.ndarray) -> np.ndarray:
    """Mean over classes of the means over cases, (..., N, K) -> (...); NaN entries count nowhere.

    A class without any number is left out of the mean; without any number at all it is NaN.
    """
    class_means = _mean_of_known(scores, axis=-2)
    return _mean_of_known(class_means, axis=-1)


def bootstrap_interval(
    scores: pd.DataFrame, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of `mean_over_classes` over cases, for `case_class_means` (N, K).

    Cases are resampled with all their classes, which are not independent of each other. NaN for fewer than 2 cases.
    """
    values = scores.to_numpy(dtype=float)
    if len(values) < 2:
        return float("nan"), float("nan")

    def statistic(draws: np.ndarray, axis: int) -> np.ndarray:
        return mean_over_classes(values[np.moveaxis(draws, axis, -1)])

    result = stats.bootstrap(
        (np.arange(len(values)),),
        statistic,
        n_resamples=resamples,
        batch=500,  # (500, 300 cases, 15 classes) in float64 are 18 MB
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return float(low), float(high)


def paired_wilcoxon(scores: pd.DataFrame, reference: pd.DataFrame) -> tuple[float, int]:
    """Two-sided p of Wilcoxon's signed-rank test on per-case means over classes, and the number of pairs.

    Both are `case_class_means`; pairs are the cases that both scored. Equal pairs are dropped (Wilcoxon's rule); where
    all are equal p is 1, without any pair NaN. Exact for few cases, where no p is small: 5 pairs give 0.0625 or more.
    """
    own, other = (table.mean(axis=1).dropna() for table in (scores, reference))
    common = own.index.intersection(other.index)
    differences = (own[common] - other[common]).to_numpy()
    # Means of the same numbers in another order differ in the last digit and are ties.
    differences = np.where(np.isclose(differences, 0, rtol=0, atol=1e-12), 0.0, differences)
    if not len(differences):
        return float("nan"), 0
    if not differences.any():
        return 1.0, len(differences)
    return float(stats.wilcoxon(differences[differences != 0]).pvalue), len(differences)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values of a family of tests, in the order given; NaN is no test and stays NaN.

    The k-th smallest of m is multiplied by m - k + 1 (k from 1); none may be below the one before, or above 1
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

    Largest and smallest are of the rows of which all three are known; the others, and rows where a sum would divide by
    zero, are NaN. The paper names the two weights a1 and a2 and their values are not known here.
    """
    table = np.array([dice, params, flops], dtype=float)
    table[:, ~np.isfinite(table).all(axis=0) | (table[1:] <= 0).any(axis=0)] = np.nan
    if np.isnan(table).all() or np.nanmax(table[0]) <= 0:
        return np.full(len(dice), np.nan)
    most, least_params, least_flops = np.nanmax(table[0]), np.nanmin(table[1]), np.nanmin(table[2])
    return accuracy * table[0] / most + cost * (least_params / table[1] + least_flops / table[2])


def _mean_of_known(values: np.ndarray, axis: int) -> np.ndarray:
    """np.nanmean without its warning where nothing is known."""
    known = ~np.isnan(values)
    count = known.sum(axis=axis)
    total = np.where(known, values, 0.0).sum(axis=axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
