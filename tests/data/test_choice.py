"""Only faults of the cases that a run uses are errors: in check, prepare and training alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.cases.choice import CaseChoice, read_chosen
from e2enet.data.cases.sources import DataSource
from e2enet.data.cases.splits import five_fold
from e2enet.data.check import main as check
from e2enet.data.checking import first_use
from e2enet.data.checking.first_use import check_at_first_use
from e2enet.data.checking.patients import guess_patients
from e2enet.data.checking.run import check_dataset
from e2enet.data.datamodule import SegmentationDataModule
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.naming import Case
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.layouts.described import MSDLayout
from e2enet.data.prepare import main as prepare

UNUSED = "; no error, since the chosen split does not use the case"
ABC = {"train": ["a", "b"], "validation": ["c"]}


def found(toy: Any, choice: CaseChoice, exclude: tuple[str, ...] = ()) -> list[tuple[str | None, str, str]]:
    source = DataSource(toy.folder, MSDLayout(), exclude=exclude)
    return [(one.case, one.severity, one.problem) for one in check_dataset(source, 0, choice).problems]


def module(toy: Any, **options: Any) -> SegmentationDataModule:
    plan = {"patch_size": (4, 8, 8), "strides": ((1, 2, 2),)}
    where = {"root": toy.folder.parent, "prepared_root": toy.folder.parent.parent / "prepared"}
    return SegmentationDataModule(
        layout=MSDLayout(), name="toy", plan=plan, prepare_workers=0, num_workers=0, **where, **options
    )


def break_one_of_each_kind(toy: Any) -> None:
    """Give case d an unknown label value, remove the image of e, and fill f with NaN."""
    toy.write_label("d", np.full((8, 9, 6), 9, np.uint8))
    toy.image("e").unlink()
    toy.write_image("f", np.full((8, 9, 6), np.nan, np.float32))


def test_an_error_of_a_case_that_is_not_used_is_a_warning(toy: Any) -> None:
    break_one_of_each_kind(toy)
    assert [severity for _, severity, _ in found(toy, CaseChoice())] == ["error"] * 3
    assert found(toy, CaseChoice(rule=ABC, score_test=False)) == [
        ("d", "warning", f"holds label values 9 (432 voxels); those of the dataset expected: 0 to 2{UNUSED}"),
        ("e", "warning", f"no such file{UNUSED}"),
        ("f", "warning", f"432 voxels are NaN or infinite, finite values expected{UNUSED}"),
    ]
    # If test scores are requested, labelled cases outside of the split are test cases.
    assert [severity for _, severity, _ in found(toy, CaseChoice(rule=ABC))] == ["error"] * 3


def test_training_goes_on_without_what_it_does_not_use(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    break_one_of_each_kind(toy)
    data = module(toy, split=ABC, score_test=False)
    data.prepare_data()
    data.setup()
    assert [case.id for case in data.train_cases] == ["a", "b"] and len(data.dataset.training) == 6
    module(toy, split=ABC, score_test=False).setup()  # another process, which reads the stored result
    assert "3 warnings: training can start" in capsys.readouterr().out
    record = json.loads((data.prepared_folder / "checked.json").read_text())
    assert [line["severity"] for line in record["found"]] == ["error"] * 3
    with pytest.raises(InputError) as caught:  # the stored result of one choice does not let another one pass
        module(toy, split={"train": ["a", "d"], "validation": ["c"]}, score_test=False).prepare_data()
    assert "case d: " in str(caught.value) and "case e" not in str(caught.value)


def test_a_limit_leaves_errors_of_later_cases_alone(toy: Any) -> None:
    train, validation = five_fold(list("abcdef"), 0)
    toy.write_label(train[-1], np.full((8, 9, 6), 9, np.uint8))
    assert [(case, severity) for case, severity, _ in found(toy, CaseChoice(limit=2))] == [(train[-1], "warning")]
    assert [(case, severity) for case, severity, _ in found(toy, CaseChoice())] == [(train[-1], "error")]
    toy.write_label(train[-1])
    toy.write_label(validation[0], np.full((8, 9, 6), 9, np.uint8))
    assert [(case, severity) for case, severity, _ in found(toy, CaseChoice(limit=2))] == [(validation[0], "error")]


def test_a_limit_keeps_the_share_of_cases_that_are_only_trained_on() -> None:
    """AMOS: 200 CT cases, which are only trained on, sort before 40 MRI cases."""
    ids = [f"amos_{number:04d}" for number in (*range(1, 201), *range(507, 547))]
    cases = tuple(Case(name, (Path("image"),), Path("label")) for name in ids)
    scheme = LabelScheme({0: "background", 1: "spleen"})
    both = RawDataset(
        "AMOS", Path("amos"), ("CT or MRI",), scheme, ".nii.gz", cases, (), only_trained=frozenset(ids[:200])
    )

    def mri(chosen: Sequence[Case]) -> list[bool]:
        return [case.id > "amos_0500" for case in chosen]

    whole, limited = CaseChoice().split(both), CaseChoice(limit=20).split(both)
    assert mri(limited.train) == [False] * 17 + [True] * 3
    assert limited.train[:17] == whole.train[:17] and limited.train[17:] == whole.train[160:163]
    assert limited.validation == whole.validation and mri(whole.validation) == [True] * 8
    assert mri(CaseChoice(limit=1).split(both).train) == [True]
    assert CaseChoice(limit=192).split(both) == whole
    every = CaseChoice("all", limit=20).split(both)
    assert mri(every.train) == [False] * 17 + [True] * 3 and every.validation == every.train[17:]


def test_cases_are_excluded_with_whatever_is_wrong_with_them(toy: Any) -> None:
    break_one_of_each_kind(toy)
    toy.write_image("stray")
    toy.image("stray").unlink()
    assert found(toy, CaseChoice(rule=ABC), ("d", "e", "f")) == []
    source = DataSource(toy.folder, MSDLayout(), exclude=("d", "e", "f", "t"))
    dataset = source.read()
    assert [case.id for case in (*dataset.training, *dataset.test)] == ["a", "b", "c"]
    with pytest.raises(InputError, match=r"data\.exclude names tt, no case of the dataset; did you mean t\?"):
        DataSource(toy.folder, MSDLayout(), exclude=("d", "e", "f", "tt")).read()
    with pytest.raises(InputError, match=r"data\.exclude leaves no training case"):
        DataSource(toy.folder, MSDLayout(), exclude=tuple("abcdef")).read()


def test_the_folds_are_those_of_the_cases_that_are_left(toy: Any) -> None:
    fewer = DataSource(toy.folder, MSDLayout(), exclude=("a",)).read()
    for fold in range(5):
        assert [case.id for case in CaseChoice(fold).split(fewer).train] == five_fold(list("bcdef"), fold)[0]


def test_too_few_cases_for_the_split_are_told_by_check(toy: Any) -> None:
    ((case, severity, problem),) = found(toy, CaseChoice(), ("a", "b"))
    assert (case, severity) == (None, "error") and problem.startswith("4 training cases cannot be split: at least 5")
    assert "fold=all" in problem and "data.split={train:[ids]" in problem
    assert found(toy, CaseChoice("all"), ("a", "b")) == []


def test_the_same_image_twice_is_an_error_across_the_split_alone(toy: Any) -> None:
    image = toy.rng.integers(-1000, 1000, (8, 9, 6)).astype(np.int16)
    toy.write_image("a", image)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])  # another header and data type
    toy.write_image("b", image.astype(np.float32), affine)
    toy.write_label("b", affine=affine)
    toy.write_image("d", image.transpose(1, 0, 2)[:, ::-1])  # stored with turned axes, like its label
    toy.write_label("d", shape=(9, 8, 6))

    def twins(**choice: Any) -> list[tuple[str, str, str]]:
        problems = found(toy, CaseChoice(**choice))
        return [(str(case), severity, text) for case, severity, text in problems if "same" in text]

    apart = {"train": ["a", "c"], "validation": ["b", "e"]}
    text = "the same image, voxel for voxel, as case a, on both sides of the chosen split: "
    assert ("b", "error", f"{text}one is validation, the other training; data.exclude leaves one out") in twins(
        rule=apart
    )
    # d is labelled, so it is a test case.
    assert [(case, severity) for case, severity, _ in twins(rule=apart)] == [("b", "error"), ("d", "error")]
    assert "one is test, the other training" in twins(rule=apart)[1][2]
    assert [(case, severity) for case, severity, _ in twins(rule=apart, score_test=False)] == [
        ("b", "error"),
        ("d", "warning"),
    ]
    together = {"train": ["a", "b", "d"], "validation": ["c"]}
    assert {severity for _, severity, _ in twins(rule=together)} == {"warning"}
    both = {"train": ["b", "c"], "validation": ["d", "e"]}  # a is not used, and each pair is reported once
    assert twins(rule=both, score_test=False) == [
        (
            "d",
            "error",
            f"{text.replace('case a', 'case b')}one is validation, the other training; data.exclude leaves one out",
        ),
        ("b", "warning", f"the same image, voxel for voxel, as case a (training): {toy.image('a')}"),
    ]
    with pytest.raises(InputError, match="the same image, voxel for voxel, as case a, on both sides"):
        module(toy, split=apart, score_test=False).prepare_data()
    module(toy, split=together).prepare_data()


@pytest.mark.parametrize(
    ("ids", "pattern", "patients"),
    [
        ([f"patient{n:03d}_visit{v}" for n in range(1, 7) for v in (1, 2)], "(.+)_visit", 6),
        ([f"patient{n:03d}_frame{v:02d}" for n in range(1, 7) for v in range(1, 31)], "(.+)_frame", 6),
        ([f"BraTS-GLI-{n:05d}-00{v}" for n in range(9) for v in range(1 + (n == 4))], "(.+)-", 9),
        ([f"sub-{n:02d}_ses-{v}" for n in range(5) for v in (1, 2)], "(.+)_ses", 5),
        ([f"sub-{n:02d}" for n in range(8)] + ["sub-03_ses-2"], "(.+?)(_ses|$)", 8),
        ([f"knee_{n:03d}_{side}" for n in range(5) for side in ("left", "right")], "(.+)_", 5),
        ([f"p{n}_{part}" for n in range(5) for part in ("ED", "ES")], "(.+)_", 5),
    ],
)
def test_ids_that_look_like_several_scans_of_a_patient(ids: list[str], pattern: str, patients: int) -> None:
    guess = guess_patients(ids)
    assert guess is not None and (guess.pattern, guess.patients) == (pattern, patients)
    first, second = guess.example
    assert first != second
    for fold in range(5):
        train, validation = five_fold(ids, fold, guess.pattern)
        assert not (first in train and second in validation) and not (second in train and first in validation)


@pytest.mark.parametrize(
    "ids",
    [
        [f"hippocampus_{n:03d}" for n in range(20)],
        [f"BraTS2021_{n:05d}" for n in range(20)],
        [f"BraTS20_Training_{n:03d}" for n in range(20)],
        [f"amos_{n:04d}" for n in range(20)],
        [f"img{n:04d}" for n in range(20)],
        [f"s{n:04d}" for n in range(20)],
        [f"la_{n:03d}" for n in range(20)],
        list("abcdef"),
    ],
)
def test_ids_of_one_scan_each(ids: list[str]) -> None:
    assert guess_patients(ids) is None


def rename(toy: Any, ids: list[str]) -> None:
    for old, new in zip("abcdef", ids, strict=True):
        toy.image(old).rename(toy.image(new))
        toy.label(old).rename(toy.label(new))
    toy.describe(training=[{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in ids])


def test_check_proposes_a_group_and_names_a_split_that_is_not_used(
    toy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rename(toy, ["p1_visit1", "p1_visit2", "p2_visit1", "p3_visit1", "p4_visit1", "p5_visit1"])
    folds = [
        {"train": ["p1_visit1", "p1_visit2"], "val": ["p2_visit1"]},
        {"train": ["p2_visit1"], "val": ["p3_visit1"]},
    ]
    (toy.folder / "splits_final.json").write_text(json.dumps(folds))
    arguments = ["data=msd", "data.name=toy", f"paths.data={toy.folder.parent}", "workers=0"]
    assert check(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    advice = (
        f"warning: {toy.folder}: ids look like several scans of one patient (6 cases of 5, such as p1_visit1 and "
        "p1_visit2), and folds by case part them; 'data.group=\"(.+)_visit\"' keeps them together"
    )
    assert advice in lines
    assert any(line.startswith(f"warning: {toy.folder}/splits_final.json: is not used") for line in lines)
    for more in (['data.group="(.+)_visit"'], ["data.split=splits_final.json"]):
        assert check([*arguments, *more]) == 0
        assert "look like" not in capsys.readouterr().out
    assert check([*arguments, "data.split=splits_final.json", "fold=2"]) == 1
    assert "holds 2 folds, an integer from 0 to 1 or all expected" in capsys.readouterr().out


def test_prepare_takes_the_cases_of_every_fold_of_a_file(toy: Any, tmp_path: Path) -> None:
    folds = [{"train": ["a"], "val": ["b"]}, {"train": ["b", "c"], "val": ["a"]}]
    (toy.folder / "splits_final.json").write_text(json.dumps(folds))
    toy.write_label("f", np.full((8, 9, 6), 9, np.uint8))
    where = ["data=msd", "data.name=toy", f"paths.data={toy.folder.parent}", f"paths.prepared={tmp_path}/prepared"]
    small = ["plan.patch_size=[4,8,8]", "plan.strides=[[1,2,2]]", "data.prepare_workers=0", "final.predict=false"]
    prepare([*where, *small, "data.split=splits_final.json"])
    assert sorted(path.stem for path in (tmp_path / "prepared" / "toy").glob("cases_*/*.json")) == ["a", "b", "c"]
    with pytest.raises(SystemExit):
        prepare([*where, *small, "data.exclude=[g]"])
    prepare([*where, *small, "data.exclude=[f]"])
    assert sorted(path.stem for path in (tmp_path / "prepared" / "toy").glob("cases_*/*.json")) == list("abcde")


def test_wrong_values_of_the_choice_are_refused_first(toy: Any) -> None:
    with pytest.raises(InputError) as caught:
        module(toy, fold=5, group="patient", limit_cases=0)
    assert "fold=5 must be 0 to 4 or 'all'" in str(caught.value) and "limit_cases=0" in str(caught.value)
    assert "group='patient' must be a regular expression with a group" in str(caught.value)
    for wrong in ("(", "abc"):
        assert CaseChoice(group=wrong).problems() != []
    assert CaseChoice(7, "splits_final.json").problems() == []
    with pytest.raises(InputError, match="no labelled case of the dataset"):
        read_chosen(DataSource(toy.folder, MSDLayout()), CaseChoice(rule={"train": ["a"], "validation": ["z"]}))


def test_a_group_that_is_trained_on_is_never_scored_as_a_test_case() -> None:
    """Labelled cases that a split does not list become test cases; so do the publisher's."""
    names = [f"p{number}_{visit}" for number in range(6) for visit in (1, 2)]
    training = tuple(Case(name, (Path("i.nii"),), Path("l.nii")) for name in names)
    own = (Case("p0_3", (Path("i.nii"),), Path("l.nii")), Case("x", (Path("i.nii"),), Path("l.nii")))
    raw = RawDataset("toy", Path("raw/toy"), ("CT",), LabelScheme({0: "background", 1: "liver"}), ".nii", training, ())
    rule = {"train": ["p1_1", "p2_1", "p2_2"], "validation": ["p3_1"]}
    told = "p1 of data.group is trained on, and p1_2 would be a test case"
    with pytest.raises(InputError, match="raw/toy: the split cannot be used") as error:
        CaseChoice(rule=rule, group="(.+)_").split(raw)
    assert told in str(error.value) and "p2 of" not in str(error.value) and "final.predict=false" in str(error.value)
    for choice in (
        CaseChoice(rule=rule, group="(.+)_", score_test=False),
        CaseChoice(rule=rule),
        CaseChoice(rule=rule | {"train": ["p1_1", "p1_2"]}, group="(.+)_"),
        CaseChoice(group="(.+)_"),
    ):
        assert choice.split(raw).train
    for fold in (0, "all"):
        with pytest.raises(InputError, match=r"p0 of data\.group is trained on, and p0_3 would be a test case"):
            CaseChoice(fold=fold, group="(.+)_").split(replace(raw, test=own))  # type: ignore[arg-type]
    unlabelled = replace(raw, test=(replace(own[0], label=None), own[1]))
    assert [case.id for case in CaseChoice(group="(.+)_").split(unlabelled).test] == ["p0_3", "x"]


def test_folds_that_may_part_patients_are_told_at_every_start(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if the files were checked earlier, with a split that needed no such line."""
    names = [f"p{number}_visit{visit}" for number in range(5) for visit in (1, 2)]
    for name in names:
        toy.write_image(name)
        toy.write_label(name)
    toy.describe(
        training=[{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names], test=[]
    )
    source = DataSource(toy.folder, MSDLayout())
    given = {"train": names[:8], "validation": names[8:]}

    def said(**choice: Any) -> str:
        check_at_first_use(source, tmp_path / "prepared", 0, CaseChoice(**choice))
        return capsys.readouterr().out

    line = "ids look like several scans of one patient (10 cases of 5, such as p0_visit1 and p0_visit2)"
    assert line not in said(rule=given)
    for start in range(2):
        monkeypatch.setattr(first_use, "_told", set())  # another process
        found = said(fold=start)
        assert found.startswith(f"warning: {toy.folder}: {line}") and len(found.splitlines()) == 1
        assert said(fold=start) == said(group="(.+)_visit") == ""
    toy.write_image(names[0])  # checked anew: the report has the line, and it is told once
    assert said().count(line) == 1
