"""Statistics against hand-worked numbers, enumerations and SciPy's distributions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from e2enet.report.results.statistics import (
    bootstrap_interval,
    case_means,
    holm,
    mean_over_runs,
    paired_wilcoxon,
    run_scores,
    trade_off,
)

NAN = math.nan


def scores(values: object, cases: list[str] | None = None) -> pd.DataFrame:
    """Return a table (case, class) from rows of numbers, or of one class from a flat list."""
    array = np.array(values, dtype=float)
    array = array[:, None] if array.ndim == 1 else array
    return pd.DataFrame(array, index=cases or [f"case_{index:03d}" for index in range(len(array))])


def wilcoxon(own: pd.DataFrame, reference: pd.DataFrame) -> tuple[float, int]:
    """Return `paired_wilcoxon` of one run's means over classes."""
    return paired_wilcoxon(own.mean(axis=1), reference.mean(axis=1))


def one_run(values: object) -> np.ndarray:
    """Return `scores` as the `run_scores` of one run."""
    return scores(values).to_numpy()[None]


def enumerated_p(differences: list[float]) -> float:
    """Return the two-sided signed-rank p by definition: enumerate the signs of all ranks."""
    ranks = stats.rankdata(np.abs(differences))
    observed = abs(sum(np.sign(differences) * ranks))
    sums = [abs(np.dot(signs, ranks)) for signs in itertools.product((-1, 1), repeat=len(ranks))]
    return float(np.mean(np.array(sums) >= observed - 1e-9))


def test_a_cases_score_is_the_mean_over_runs_of_means_over_classes() -> None:
    lines = [
        ("run1", "b", "1", 0.8, False),
        ("run1", "a", "1", 0.6, False),
        ("run2", "a", "1", 0.7, False),
        ("run1", "a", "2", NAN, False),  # absent in run 1, invented by run 2
        ("run2", "a", "2", 0.0, False),
        ("run1", "b", "2", NAN, False),
        ("run1", "a", "1+2", 0.1, True),
        ("run1", "c", "1", NAN, False),
    ]
    cases = pd.DataFrame(lines, columns=["key", "case", "class", "dice", "region"])
    found = case_means(cases)
    assert found.index.tolist() == ["a", "b", "c"]
    np.testing.assert_allclose(found.to_numpy(), [(0.6 + 0.35) / 2, 0.8, NAN])


def test_a_row_of_more_runs_is_not_behind_for_it() -> None:
    """Class 2 is absent, and each run invents it in a fifth of the cases: three runs of a row as often as one."""
    rng = np.random.default_rng(0)

    def row(runs: int) -> pd.Series:
        lines = [
            (f"run{run}", case, label, value, False)
            for run in range(runs)
            for case in range(2000)
            for label, value in (("1", 0.9), ("2", 0.0 if rng.random() < 0.2 else NAN))
        ]
        return case_means(pd.DataFrame(lines, columns=["key", "case", "class", "dice", "region"]))

    one, three = row(1), row(3)
    assert one.mean() == pytest.approx(0.81, abs=0.01) and three.mean() == pytest.approx(0.81, abs=0.01)


def test_a_run_s_mean_is_the_summary_s() -> None:
    # Class 1 is the mean of 0.5 and 0.7. Class 2 is 0.9, as it is absent in the other case. Class 3 is in no case.
    values = np.array([[0.5, 0.9, NAN], [0.7, NAN, NAN]])
    assert mean_over_runs(values[None]) == pytest.approx((0.6 + 0.9) / 2)
    # A second run has class 1 alone, and its mean has the same weight. A third run without scores does not count.
    second = np.array([[0.1, NAN, NAN], [0.3, NAN, NAN]])
    assert mean_over_runs(np.stack([values, second, np.full((2, 3), NAN)])) == pytest.approx((0.75 + 0.2) / 2)
    assert math.isnan(mean_over_runs(np.full((1, 2, 2), NAN)))


def test_run_scores_stand_by_run_case_and_class() -> None:
    lines = [
        ("run1", "a", "1", 0.6, False),
        ("run1", "a", "2", NAN, False),
        ("run1", "b", "1", 0.8, False),
        ("run1", "b", "2", 0.4, False),
        ("run1", "b", "1+2", 0.1, True),
        ("run2", "c", "2", 0.7, False),  # another fold
    ]
    cases = pd.DataFrame(lines, columns=["key", "case", "class", "dice", "region"])
    expected = [[[0.6, NAN], [0.8, 0.4], [NAN, NAN]], [[NAN, NAN], [NAN, NAN], [NAN, 0.7]]]
    np.testing.assert_allclose(run_scores(cases), expected)
    assert run_scores(cases[:0]).shape == (0, 0, 0)


def test_interval_is_of_the_mean_over_runs() -> None:
    # Class A scores 0.9 everywhere. Of 10 references only the first has class B, where both seeds score 0.8. In the
    # others seed 0 predicts no B and seed 1 invents it: 85 % and 49 %. Pooled over seeds it would be 49 % for both.
    runs = np.full((2, 10, 2), 0.9)
    runs[0, :, 1] = [0.8] + 9 * [NAN]
    runs[1, :, 1] = [0.8] + 9 * [0.0]
    assert mean_over_runs(runs) == pytest.approx(0.67)
    # The first case is drawn k times of 10. k = 1, the data themselves, gives the lowest mean: with k = 0 seed 0 has
    # 90 % and seed 1 45 %. k > 3 is rarer than 2.5 %; with k = 3 seed 0 has 85 % and seed 1 57 %.
    assert bootstrap_interval(runs) == pytest.approx((0.67, 0.71))


def test_interval_of_folds_draws_from_the_cases_of_both() -> None:
    # Two folds of one case each: a resample holds the first twice, the second twice, or both.
    folds = np.array([[[0.2], [NAN]], [[NAN], [0.8]]])
    assert mean_over_runs(folds) == pytest.approx(0.5)
    assert bootstrap_interval(folds, resamples=500) == pytest.approx((0.2, 0.8))


def test_interval_is_the_same_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = np.random.default_rng(2).uniform(size=(3, 12, 2))
    whole = bootstrap_interval(runs, resamples=4000)
    monkeypatch.setattr("e2enet.report.results.statistics.NUMBERS_AT_ONCE", 18 * 100)
    np.testing.assert_allclose(bootstrap_interval(runs, resamples=4000), whole, atol=0.01)


@pytest.mark.parametrize(("count", "ones", "confidence"), [(20, 10, 0.95), (20, 16, 0.95), (30, 9, 0.8)])
def test_interval_of_zeros_and_ones_is_binomial(count: int, ones: int, confidence: float) -> None:
    # If a share p of n cases scores 1, a resample holds Binomial(n, p) of them.
    table = one_run([1.0] * ones + [0.0] * (count - ones))
    low, high = bootstrap_interval(table, confidence=confidence, resamples=20_000, seed=1)
    tail = (1 - confidence) / 2
    expected = stats.binom.ppf([tail, 1 - tail], count, ones / count) / count
    np.testing.assert_allclose([low, high], expected)


def test_interval_resamples_cases_with_all_their_classes() -> None:
    # In each case the classes average to 0.5, so the mean never changes. If classes were drawn separately, it would.
    values = np.random.default_rng(0).uniform(size=12)
    low, high = bootstrap_interval(one_run(np.stack([values, 1 - values], axis=1)))
    assert (low, high) == pytest.approx((0.5, 0.5))


def test_interval_is_of_the_mean_over_classes() -> None:
    # Class 2 is in one case only. Resamples with that case score 0.9 for it; the others have only class 1's 0.5.
    low, high = bootstrap_interval(one_run([[0.5, 0.9], [0.5, NAN], [0.5, NAN]]), resamples=1000)
    assert (low, high) == pytest.approx((0.5, 0.7))


def test_interval_depends_on_its_seed_alone() -> None:
    table = one_run(np.random.default_rng(3).uniform(size=(15, 2)))
    assert bootstrap_interval(table, seed=4) == bootstrap_interval(table, seed=4)
    assert bootstrap_interval(table, seed=4) != bootstrap_interval(table, seed=5)


def test_one_case_has_no_interval() -> None:
    assert all(math.isnan(end) for end in bootstrap_interval(one_run([0.5])))
    assert all(math.isnan(end) for end in bootstrap_interval(one_run(np.empty((0, 1)))))


@pytest.mark.parametrize(
    "differences",
    [
        [0.01, 0.02, 0.03, 0.04, 0.05],  # all in one direction: 2 of 32 sign patterns
        [-0.01, 0.02, 0.03, 0.04, 0.05, 0.06],
        [0.06, -0.01, 0.05, -0.02, 0.03, 0.04, 0.08, -0.07],
    ],
)
def test_wilcoxon_is_that_of_all_sign_patterns(differences: list[float]) -> None:
    reference = np.linspace(0.5, 0.7, len(differences))
    p, pairs = wilcoxon(scores(reference + differences), scores(reference))
    assert p == pytest.approx(enumerated_p(differences))
    assert pairs == len(differences)


def test_wilcoxon_of_five_better_cases() -> None:
    p, _ = wilcoxon(scores([0.6, 0.7, 0.8, 0.9, 1.0]), scores([0.5, 0.5, 0.5, 0.5, 0.5]))
    assert p == 2 / 2**5


def test_wilcoxon_pairs_by_case_and_averages_classes() -> None:
    own = scores([[0.9, 0.7], [0.6, NAN], [0.2, 0.2]], ["a", "b", "other"])
    reference = scores([[0.6, 0.6], [0.8, 0.8], [0.5, 0.5]], ["b", "a", "c"])
    # a: 0.8 against 0.8, b: 0.6 against 0.6; "other" and "c" have no partner.
    assert wilcoxon(own, reference) == (1.0, 2)


def test_wilcoxon_drops_ties() -> None:
    p, pairs = wilcoxon(scores([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), scores([0.5, 0.5, 0.5, 0.5, 0.5, 0.5]))
    assert (p, pairs) == (2 / 2**5, 6)


def test_wilcoxon_takes_equal_means_as_ties_whatever_their_last_digit() -> None:
    # The mean of 0.1, 0.2, 0.3 is 0.2 or 0.20000000000000004, depending on the order of classes. This pair is a tie,
    # not a sixth improvement.
    classes = np.array([0.1, 0.2, 0.3])
    own = scores(np.vstack([np.tile(classes + 0.5, (5, 1)), classes]))
    reference = scores(np.vstack([np.arange(5)[:, None] / 10 + np.tile(classes, (5, 1)), classes[::-1]]))
    assert own.mean(axis=1).iloc[5] != reference.mean(axis=1).iloc[5]
    assert wilcoxon(own, reference) == (2 / 2**5, 6)


@pytest.mark.parametrize(
    "differences",
    [
        [0.1, -0.1, 0.1, 0.3, 0.3, 0.2, -0.2, 0.4],  # ranks 2, 2, 2, 6.5, 6.5, 4.5, 4.5, 8
        [-0.3, 0.1, 0.1, 0.1, 0.1],
        [0.1, 0.1, 0.1, 0.1, 0.1, -0.1],
    ],
)
def test_wilcoxon_gives_differences_of_equal_size_one_rank(differences: list[float]) -> None:
    # (0.7 + 0.1) - 0.7 and (0.4 + 0.1) - 0.4 differ in the last digit; their ranks must not.
    reference = np.linspace(0.1, 0.5, len(differences))
    p, _ = wilcoxon(scores(reference + differences), scores(reference))
    assert len(set(abs(reference + differences - reference))) > len(set(map(abs, differences)))
    assert p == pytest.approx(enumerated_p(differences))


def test_wilcoxon_of_many_ties_is_the_normal_one_with_their_correction() -> None:
    # 20 differences of two sizes have ranks 5.5 and 15.5. Three of rank 5.5 and two of rank 15.5 are negative.
    differences = np.array([-0.1] * 3 + [0.1] * 7 + [-0.2] * 2 + [0.2] * 8)
    reference = np.linspace(0.3, 0.6, 20)
    p, _ = wilcoxon(scores(reference + differences), scores(reference))
    negative, mean = 3 * 5.5 + 2 * 15.5, 20 * 21 / 4
    variance = 20 * 21 * 41 / 24 - 2 * (10**3 - 10) / 48
    assert p == pytest.approx(2 * stats.norm.cdf((negative - mean) / math.sqrt(variance)))


def test_wilcoxon_without_pairs_is_unknown() -> None:
    p, pairs = wilcoxon(scores([0.5], ["a"]), scores([0.5], ["b"]))
    assert math.isnan(p) and pairs == 0


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
        ([0.04, 0.01, 0.03], [0.06, 0.03, 0.06]),  # 0.01 x 3, 0.03 x 2, then 0.04 x 1 raised to 0.06
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.02, NAN, 0.01], [0.02, NAN, 0.02]),
        ([], []),
    ],
)
def test_holm_by_hand(raw: list[float], adjusted: list[float]) -> None:
    np.testing.assert_allclose(holm(raw), adjusted)


def test_trade_off_by_hand() -> None:
    # Dice 80 of at most 80, 2 M of at least 1, 10 GFLOP of at least 10: 1 + 0.5 (0.5 + 1).
    values = trade_off([80, 60, 70], [2, 1, NAN], [10, 40, 5], accuracy=1.0, cost=0.5)
    np.testing.assert_allclose(values, [1.75, 0.75 + 0.5 * (1 + 0.25), NAN])


@pytest.mark.parametrize(("dice", "params"), [([], []), ([0.0], [1.0]), ([NAN], [1.0]), ([50.0], [0.0])])
def test_trade_off_is_unknown_where_it_is_undefined(dice: list[float], params: list[float]) -> None:
    values = trade_off(dice, params, params, accuracy=1.0, cost=0.5)
    assert len(values) == len(dice) and np.isnan(values).all()
