"""Five folds are nnU-Net's, to the case; other splits are the publisher's or the config's."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.layout import Case, RawDataset
from e2enet.data.splits import Split, SplitRule, five_fold, split_dataset

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


def dataset(training: int = 6, validation: int = 2, unlabelled: int = 1) -> RawDataset:
    def cases(prefix: str, count: int, labelled: bool = True) -> tuple[Case, ...]:
        label = Path("label.nii.gz") if labelled else None
        return tuple(Case(f"{prefix}{number}", (Path("image.nii.gz"),), label) for number in reversed(range(count)))

    parts = cases("t", training), cases("u", unlabelled, labelled=False), cases("v", validation)
    return RawDataset("Toy", Path("toy"), ("CT",), {0: "background", 1: "liver"}, ".nii.gz", *parts)


def ids(split: Split) -> tuple[list[str], list[str], list[str]]:
    return tuple([case.id for case in cases] for cases in (split.train, split.validation, split.test))  # type: ignore[return-value]


def test_five_folds_leave_the_publishers_validation_cases_for_testing() -> None:
    train, validation, test = ids(split_dataset(dataset(), "five_fold", 0))
    assert (train, validation) == five_fold([f"t{number}" for number in range(6)], 0)
    assert test == ["u0", "v0", "v1"]


def test_the_publishers_own_split() -> None:
    train, validation, test = ids(split_dataset(dataset(), "official"))
    assert train == [f"t{number}" for number in range(6)]
    assert (validation, test) == (["v0", "v1"], ["u0"])


def test_a_split_of_given_ids() -> None:
    rule = {"train": ["v1", "t0"], "validation": ["t3"]}
    assert ids(split_dataset(dataset(), rule)) == (["t0", "v1"], ["t3"], ["t1", "t2", "t4", "t5", "u0", "v0"])


@pytest.mark.parametrize("rule", ["five_fold", "official", {"train": ["t0"], "validation": ["t1"]}])
def test_all_trains_and_validates_on_every_training_case(rule: SplitRule) -> None:
    train, validation, test = ids(split_dataset(dataset(), rule, "all"))
    assert train == validation == [f"t{number}" for number in range(6)]
    assert test == ["u0", "v0", "v1"]


@pytest.mark.parametrize(
    ("rule", "fold", "message"),
    [
        ("official", 2, "fold=2: the split 'official' is a single one"),
        ({"train": ["t0"], "validation": ["t1"]}, 1, "of given ids is a single one"),
        ({"train": ["t0", "x"], "validation": ["t0"]}, 0, r"(?s)case t0 is given 2 times.*case x: no labelled case"),
        ({"train": ["u0"], "validation": ["t0"]}, 0, "case u0: no labelled case"),
        ({"train": ["t0"]}, 0, r"expected five_fold \| official"),
        ({"train": ["t0"], "validation": []}, 0, "two lists of at least one case id"),
        ({"train": "t0", "validation": ["t1"]}, 0, "two lists of at least one case id"),
        ("ten_fold", 0, r"split='ten_fold': expected five_fold \| official"),
    ],
)
def test_splits_that_cannot_be_made(rule: SplitRule, fold: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_dataset(dataset(), rule, fold)


def test_no_official_split_without_validation_cases() -> None:
    with pytest.raises(InputError, match="no validation cases of its own"):
        split_dataset(dataset(validation=0), "official")
