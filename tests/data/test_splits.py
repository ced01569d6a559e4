"""The five folds equal nnU-Net's case by case; other splits are the publisher's or the config's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from e2enet.common.errors import InputError
from e2enet.data.cases.split_file import RunSplit, read_run_split, write_run_split
from e2enet.data.cases.splits import Fold, Split, SplitRule, five_fold, split_dataset
from e2enet.data.formats.layout import Case, RawDataset
from e2enet.data.formats.scheme import LabelScheme

GIVEN = {"train": ["t0"], "validation": ["t1"]}
IDS = [f"case_{number:03d}" for number in range(12)]


def test_recorded_folds() -> None:
    # Recorded once. Another generator or seed would silently mix training and validation cases of old runs.
    expected = [[0, 3, 8], [7, 10, 11], [6, 9], [1, 4], [2, 5]]
    for fold, numbers in enumerate(expected):
        assert five_fold(IDS, fold)[1] == [IDS[number] for number in numbers]


def test_folds_are_those_of_scikit_learn() -> None:
    """Recorded with its KFold(5, shuffle=True, random_state=12345), version 1.9, for 5 to 400 cases."""
    digest = hashlib.sha256()
    for size in range(5, 401):
        ids = [f"{number:03d}" for number in range(size)]
        digest.update(json.dumps([five_fold(ids, fold) for fold in range(5)]).encode())
    assert digest.hexdigest() == "90e3df40585949659f4d047242e2cacd782377a220e3edfa60f45c085cbb5ae4"


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
    with pytest.raises(InputError, match=r"^1 group of data\.group=\(case\) cannot be split"):
        five_fold([f"case{number}" for number in range(6)], 0, "(case)")
    with pytest.raises(InputError, match="4 training cases cannot be split"):
        five_fold(IDS[:4], 0)
    with pytest.raises(InputError, match=r"\['case_000'\] occur more than once"):
        five_fold([*IDS, IDS[0]], 0)


def test_groups_stay_together_and_alone_change_nothing() -> None:
    visits = [f"p{number:02d}_visit{visit}" for number in range(7) for visit in range(1, 4 - number % 3)]
    folds = [five_fold(visits, fold, r"(p\d+)_") for fold in range(5)]
    assert sorted(name for _, validation in folds for name in validation) == visits
    patients = [f"p{number:02d}_visit1" for number in range(7)]
    for fold, (train, validation) in enumerate(folds):
        assert not {name[:3] for name in train} & {name[:3] for name in validation}
        assert [name for name in validation if name.endswith("1")] == five_fold(patients, fold)[1]
        # The numbers of these groups sort in the opposite order of the ids.
        backwards = [f"{chr(97 + index)}_{50 - index}" for index in range(12)]
        assert five_fold(backwards, fold, r"_(\d+)") == five_fold(backwards, fold)


def test_groups_that_cannot_be_made() -> None:
    with pytest.raises(InputError, match=r"group=\(p\\d\+\)_: its first group has no match in the ids q1; one in"):
        five_fold(["p1_1", "p2_1", "q1"], 0, r"(p\d+)_")
    with pytest.raises(InputError, match="no match in the ids b"):
        five_fold(["ab", "b"], 0, "(a)?b")
    with pytest.raises(InputError, match=r"4 groups of data\.group=\(p\)?.* cannot be split: at least 5 expected"):
        five_fold([f"p{number % 4}_{number}" for number in range(12)], 0, r"(p\d)_")
    with pytest.raises(InputError, match=r"t of data\.group is trained and validated on"):
        split_dataset(dataset(), {"train": ["t0"], "validation": ["t1"]}, 0, "(t)")
    assert ids(split_dataset(dataset(), {"train": ["t0"], "validation": ["t1"]}, 0, r"(t\d)"))[:2] == (["t0"], ["t1"])


def write_folds(path: Path, *folds: tuple[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"train": train.split(), "val": validation.split()} for train, validation in folds]))


def test_the_folds_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = replace(dataset(), folder=tmp_path / "raw" / "Dataset001_Toy")
    folds = (("t1 t0", "t2"), ("t0 t2", "t1"), ("v1 t1", "t0"))
    write_folds(tmp_path / "nnunet" / "Dataset001_Toy" / "splits_final.json", *folds)
    with pytest.raises(InputError, match=r"splits_final\.json: no such file; looked for .*raw/Dataset001_Toy"):
        split_dataset(toy, "splits_final.json", 0)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nnunet"))
    found = [split_dataset(toy, "splits_final.json", fold) for fold in range(3)]
    assert [ids(split)[:2] for split in found] == [
        (["t0", "t1"], ["t2"]),
        (["t0", "t2"], ["t1"]),
        (["t1", "v1"], ["t0"]),
    ]
    assert {split.folds for split in found} == {3} and ids(found[0])[2] == ["t3", "t4", "t5", "u0", "v0", "v1"]
    every = split_dataset(toy, "splits_final.json", "every")
    assert ids(every)[:2] == (["t0", "t1", "t2", "v1"],) * 2
    write_folds(toy.folder / "splits_final.json", ("t5", "t4"))  # a file beside dataset.json comes first
    assert ids(split_dataset(toy, "splits_final.json", 0))[:2] == (["t5"], ["t4"])
    write_folds(tmp_path / "own.json", ("t0 t1", "t2"), ("gone t1", "t3"))
    left_out = replace(toy, excluded=("gone", "t0"))
    assert ids(split_dataset(left_out, str(tmp_path / "own.json"), 0))[:2] == (["t1"], ["t2"])
    with pytest.raises(InputError, match=r"own\.json cannot be used:\n  - fold 1: case gone: no labelled case"):
        split_dataset(toy, str(tmp_path / "own.json"), 0)
    with pytest.raises(InputError, match=r"fold=2: .*own\.json holds 2 folds, an integer from 0 to 1 or all expected"):
        split_dataset(left_out, str(tmp_path / "own.json"), 2)
    with pytest.raises(InputError, match="fold 1: no case is left"):
        split_dataset(replace(toy, excluded=("gone", "t3")), str(tmp_path / "own.json"), 0)


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", '[{"train": ["t0"]}]', '[{"train": ["t0"], "val": []}]', '[{"train": [1], "val": ["t1"]}]', "["],
)
def test_files_that_are_no_splits(tmp_path: Path, content: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"splits\.json: (a list of folds|cannot be used as a split|not valid)"):
        split_dataset(dataset(), str(path), 0)


def test_a_run_keeps_its_split(tmp_path: Path) -> None:
    assert read_run_split(tmp_path) is None
    split = RunSplit(3, ("a", "b"), ("c",), ())
    write_run_split(tmp_path, split)
    assert read_run_split(tmp_path) == split
    (tmp_path / "split.json").write_text("{}")
    with pytest.raises(InputError, match=r"split\.json: not the split of a run"):
        read_run_split(tmp_path)


def dataset(training: int = 6, validation: int = 2, unlabelled: int = 1) -> RawDataset:
    def cases(prefix: str, count: int, labelled: bool = True) -> tuple[Case, ...]:
        label = Path("label.nii.gz") if labelled else None
        return tuple(Case(f"{prefix}{number}", (Path("image.nii.gz"),), label) for number in reversed(range(count)))

    parts = cases("t", training), cases("u", unlabelled, labelled=False), cases("v", validation)
    return RawDataset("Toy", Path("toy"), ("CT",), LabelScheme({0: "background", 1: "liver"}), ".nii.gz", *parts)


def ids(split: Split) -> tuple[list[str], list[str], list[str]]:
    return tuple([case.id for case in cases] for cases in (split.train, split.validation, split.test))  # type: ignore[return-value]


def test_five_folds_leave_the_publishers_validation_cases_for_testing() -> None:
    train, validation, test = ids(split_dataset(dataset(), "five_fold", 0))
    assert (train, validation) == five_fold([f"t{number}" for number in range(6)], 0)
    assert test == ["u0", "v0", "v1"]


def test_cases_that_are_only_trained_on_have_folds_of_their_own() -> None:
    more = [f"t{number}" for number in range(6, 13)]
    mixed = replace(dataset(13), only_trained=frozenset(more))
    for fold in range(5):
        train, validation, test = ids(split_dataset(mixed, "five_fold", fold))
        (own, expected), (also, left) = (five_fold(names, fold) for names in ([f"t{n}" for n in range(6)], more))
        assert (train, validation) == (sorted([*own, *also]), expected) and left
        assert not set(left) & {*train, *validation, *test}  # the held-out part of these cases is not used at all


def test_all_validates_on_no_case_that_is_only_trained_on() -> None:
    mixed = replace(dataset(), only_trained=frozenset(["t0", "t4"]))
    train, validation, _ = ids(split_dataset(mixed, fold="all"))
    assert train == [f"t{number}" for number in range(6)] and validation == ["t1", "t2", "t3", "t5"]
    assert ids(split_dataset(mixed, fold="every"))[1] == train  # every labelled case is prepared


@pytest.mark.parametrize(("rule", "fold"), [("five_fold", 0), ("five_fold", "all"), ("official", 0), (GIVEN, 0)])
def test_one_id_in_training_and_validation_is_refused(rule: SplitRule, fold: Fold) -> None:
    clash = replace(dataset(), validation=(Case("t1", (Path("val/t1.nii.gz"),), Path("val/l.nii.gz")),))
    with pytest.raises(InputError, match=r"val/t1\.nii\.gz: the id is in training too, as image\.nii\.gz: another"):
        split_dataset(clash, rule, fold)


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
