"""Friedman's and Nemenyi's tests against published examples, definitions and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from e2enet.common.errors import InputError
from e2enet.report.results.ranks import MIN_CASES, critical_distance, rank_test

# Ranks of four decision trees on 14 datasets: Demsar 2006, table 6.
METHODS = ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"]
DEMSAR = pd.DataFrame(
    [
        *([4, 3, 2, 1], [1, 2, 3, 4], [4, 1, 2, 3], [4, 1, 3, 2], [4, 2, 3, 1], [1, 2.5, 4, 2.5], [3, 2, 4, 1]),
        *([2.5, 2.5, 4, 1], [4, 3, 2, 1], [2.5] * 4, [4, 2.5, 1, 2.5], [3, 2, 4, 1], [4, 1, 2, 3], [3, 1, 4, 2]),
    ],
    columns=METHODS,
)
# Six applicants ranked by three interviewers: Siegel 1956, Nonparametric Statistics, on Kendall's W.
INTERVIEWERS = pd.DataFrame([[1, 6, 3, 2, 5, 4], [1, 5, 6, 4, 2, 3], [6, 3, 2, 5, 4, 1]], columns=list("abcdef"))


def random_scores(cases: int, methods: int, seed: int = 0) -> pd.DataFrame:
    values = np.random.default_rng(seed).uniform(size=(cases, methods))
    return pd.DataFrame(values, columns=[f"m{index}" for index in range(methods)])


def test_the_example_of_demsar() -> None:
    test = rank_test(DEMSAR, largest_best=False)
    assert test.mean_ranks.round(3).to_dict() == {"C4.5+m+cf": 1.964, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5": 3.143}
    # He does not correct for ties: six pairs of (t^3 - t) / (N (K^3 - K)), four equal ranks count as ten pairs.
    correction = 1 - (3 * 6 + 60) / (14 * (4**3 - 4))
    assert test.statistic * correction == pytest.approx(9.28, abs=0.005)
    assert test.cases == 14 and test.p < 0.05
    assert test.critical_distance == pytest.approx(1.25, abs=0.005)
    # At 5 % the best and the worst are nearer than the distance. At 10 % he finds two groups, and C4.5+cf in both.
    assert test.groups() == [["C4.5+m+cf", "C4.5+m", "C4.5+cf", "C4.5"]]
    test = rank_test(DEMSAR, alpha=0.1, largest_best=False)
    assert test.critical_distance == pytest.approx(1.12, abs=0.005)
    assert test.groups() == [["C4.5+m+cf", "C4.5+m", "C4.5+cf"], ["C4.5+cf", "C4.5"]]


@pytest.mark.parametrize(
    ("alpha", "published"),
    [
        (0.05, [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]),
        (0.10, [1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920]),
    ],
)
def test_critical_values_are_the_published_ones(alpha: float, published: list[float]) -> None:
    # Demsar 2006, table 5(a), for 2 to 10 methods. Its last digit is off by one in places.
    found = [
        critical_distance(methods, 60, alpha=alpha) / math.sqrt(methods * (methods + 1) / 360)
        for methods in range(2, 11)
    ]
    np.testing.assert_allclose(found, published, atol=0.0015)


def test_agreement_is_the_published_one() -> None:
    # Three interviewers are too few for p, so each is asked twice: W stays the same.
    twice = pd.concat([INTERVIEWERS, INTERVIEWERS])
    test = rank_test(twice, largest_best=False)
    assert test.agreement == pytest.approx(0.16, abs=0.005)
    assert 6 * test.mean_ranks["b"] == 2 * (6 + 5 + 3)


@pytest.mark.parametrize(("cases", "methods"), [(5, 3), (12, 4), (40, 12)])
def test_statistic_is_scipy_s_and_agreement_is_between_0_and_1(cases: int, methods: int) -> None:
    scores = random_scores(cases, methods)
    test = rank_test(scores)
    expected = stats.friedmanchisquare(*scores.to_numpy().T)
    assert (test.statistic, test.p) == pytest.approx((expected.statistic, expected.pvalue))
    # W by its definition: the spread of the rank sums, divided by the largest possible.
    sums = scores.rank(axis=1).sum()
    spread = ((sums - sums.mean()) ** 2).sum()
    assert test.agreement == pytest.approx(12 * spread / (cases**2 * (methods**3 - methods)))


def test_one_order_in_all_cases_is_full_agreement() -> None:
    scores = pd.DataFrame(np.linspace(0.1, 0.9, 10)[:, None] + [0.01, 0.03, 0.02], columns=["worst", "best", "middle"])
    test = rank_test(scores)
    assert test.mean_ranks.to_dict() == {"best": 1, "middle": 2, "worst": 3}
    assert test.agreement == pytest.approx(1) and test.is_significant
    # 1.05 is the distance for ten cases: best and worst are 2 apart, neighbours are 1 apart.
    assert test.groups() == [["best", "middle"], ["middle", "worst"]]
    assert rank_test(scores, largest_best=False).mean_ranks.to_dict() == {"worst": 1, "middle": 2, "best": 3}


def test_p_of_a_pair_is_the_level_at_the_critical_distance() -> None:
    test = rank_test(random_scores(30, 5))
    first, last = test.mean_ranks.index[[0, -1]]
    p = float(test.pairs.loc[first, last])
    distance = test.mean_ranks[last] - test.mean_ranks[first]
    assert critical_distance(5, 30, alpha=p) == pytest.approx(distance, rel=1e-6)
    assert p == pytest.approx(test.pairs.loc[last, first]) and np.allclose(np.diag(test.pairs), 1)


def test_methods_without_any_difference_are_one_group() -> None:
    # Means of the same numbers in another order differ in the last digit.
    scores = pd.DataFrame({"a": [0.1 + 0.2] * 6, "b": [0.3] * 6, "c": [0.2 + 0.1] * 6})
    test = rank_test(scores)
    assert (test.statistic, test.p, test.agreement) == (0, 1, 0)
    assert test.mean_ranks.to_dict() == {"a": 2, "b": 2, "c": 2}
    assert test.groups() == [["a", "b", "c"]] and not test.is_significant


def test_pairs_are_only_told_apart_if_friedman_finds_a_difference() -> None:
    # Ten methods take turns: each has every place once. Between them one is third and one is tenth in all ten cases.
    turns = np.add.outer(np.arange(10), np.arange(10)) % 10
    scores = pd.DataFrame(turns, columns=[f"m{index}" for index in range(10)]).assign(third=7.5, tenth=1.5)
    test = rank_test(scores)
    assert (test.mean_ranks["third"], test.mean_ranks["tenth"]) == (3, 10)
    assert test.critical_distance < 7 and test.pairs.loc["third", "tenth"] < 0.05
    # 12 N / (K (K + 1)) times the sum of squared distances from the mean rank 6.5, of which ten are zero.
    assert test.statistic == pytest.approx(12 * 10 / (12 * 13) * 2 * 3.5**2) and test.p > 0.05
    assert [len(group) for group in test.groups()] == [12]


def test_only_cases_that_all_methods_share_are_blocks() -> None:
    scores = random_scores(9, 3)
    whole = rank_test(scores.iloc[2:])
    scores.iloc[0, 0] = scores.iloc[1, 2] = math.nan
    test = rank_test(scores)
    assert test.cases == 7
    pd.testing.assert_series_equal(test.mean_ranks, whole.mean_ranks)


def test_too_few_methods_or_cases_are_refused() -> None:
    with pytest.raises(InputError, match="two are called alike among a, a, b"):
        rank_test(random_scores(20, 3).set_axis(["a", "a", "b"], axis=1))
    with pytest.raises(InputError, match=r"3 methods or more; got 2"):
        rank_test(random_scores(20, 2))
    scores = random_scores(MIN_CASES, 3)
    assert rank_test(scores).cases == MIN_CASES
    scores.iloc[0, 1] = math.nan
    with pytest.raises(InputError, match=r"5 cases or more .* got 4 \(cases of each: m0: 5, m1: 4, m2: 5\)"):
        rank_test(scores)


@pytest.mark.parametrize(("cases", "methods"), [(5, 3), (5, 6), (10, 12), (20, 3)])
def test_equal_methods_are_seldom_told_apart(cases: int, methods: int) -> None:
    # The approximations hold from the least number of cases on: 5 % errors, and 6 % with few cases.
    random = np.random.default_rng(1)
    ranks = random.permuted(np.broadcast_to(np.arange(methods), (20_000, cases, methods)).copy(), axis=2).mean(axis=1)
    wrong = np.mean(np.ptp(ranks, axis=1) >= critical_distance(methods, cases) - 1e-9)
    assert 0.02 < wrong < 0.06
