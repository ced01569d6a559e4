"""The split is nnU-Net's, to the case."""

from __future__ import annotations

import pytest

from e2enet.common.errors import InputError
from e2enet.data.splits import five_fold

IDS = [f"case_{number:03d}" for number in range(12)]


def test_recorded_folds() -> None:
    # Recorded once: a changed scikit-learn or seed would silently mix training and validation of old runs.
    expected = [[0, 3, 8], [7, 10, 11], [6, 9], [1, 4], [2, 5]]
    for fold, numbers in enumerate(expected):
        assert five_fold(IDS, fold)[1] == [IDS[number] for number in numbers]


def test_folds_cover_every_case_once_whatever_the_order() -> None:
    folds = [five_fold(IDS[::-1], fold) for fold in range(5)]
    assert sorted(name for _, validation in folds for name in validation) == IDS
    for fold, (training, validation) in enumerate(folds):
        assert sorted(training + validation) == IDS
        assert five_fold(IDS, fold) == (training, validation)


@pytest.mark.parametrize("fold", [-1, 5, True, "0"])
def test_other_folds_are_refused(fold: object) -> None:
    with pytest.raises(InputError, match="an integer from 0 to 4 expected"):
        five_fold(IDS, fold)  # type: ignore[arg-type]


def test_too_few_or_repeated_cases_are_refused() -> None:
    with pytest.raises(InputError, match="4 training cases cannot be split"):
        five_fold(IDS[:4], 0)
    with pytest.raises(InputError, match=r"\['case_000'\] occur more than once"):
        five_fold([*IDS, IDS[0]], 0)
