"""Both layouts are read, and all problems of a dataset are reported at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.layout import read_msd, read_nnunet, scan_msd, scan_nnunet
from e2enet.data.formats.problems import Problem
from e2enet.data.layouts.prediction import find_cases
from e2enet.data.synthetic.lookalikes import write_msd, write_nnunet


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def describe(folder: Path, **content: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def msd(folder: Path, **changes: Any) -> Path:
    """Write two training cases and one test case."""
    for name in ("imagesTr/a", "labelsTr/a", "imagesTr/b", "labelsTr/b", "imagesTs/c"):
        touch(folder / f"{name}.nii.gz")
    content: dict[str, Any] = {
        "name": "Toy",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "numTraining": 2,
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in "ab"],
        "test": ["./imagesTs/c.nii.gz"],
    }
    return describe(folder, **(content | changes))


def nnunet(folder: Path, **changes: Any) -> Path:
    """Write two training cases of two modalities, and one test case."""
    for case in "ab":
        touch(folder / f"labelsTr/{case}.nii.gz", *(folder / f"imagesTr/{case}_000{c}.nii.gz" for c in range(2)))
    touch(*(folder / f"imagesTs/c_000{c}.nii.gz" for c in range(2)), folder / "imagesTr/._a_0000.nii.gz")
    content: dict[str, Any] = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "tumour": 1},
        "file_ending": ".nii.gz",
        "numTraining": 2,
    }
    return describe(folder, **(content | changes))


def test_msd(tmp_path: Path) -> None:
    dataset = read_msd(msd(tmp_path))
    assert dataset.name == "Toy" and dataset.channels == ("CT",) and dataset.file_ending == ".nii.gz"
    assert dataset.labels == {0: "background", 1: "liver", 2: "spleen"}
    assert [case.id for case in dataset.training] == ["a", "b"] and [case.id for case in dataset.test] == ["c"]
    assert dataset.training[0].images == (tmp_path / "imagesTr/a.nii.gz",)
    assert dataset.training[0].label == tmp_path / "labelsTr/a.nii.gz"
    assert dataset.test[0].label is None


def test_test_labels_are_found_where_they_exist(tmp_path: Path) -> None:
    touch(tmp_path / "m/labelsTs/c.nii.gz", tmp_path / "n/labelsTs/c.nii.gz")
    assert read_msd(msd(tmp_path / "m")).test[0].label == tmp_path / "m/labelsTs/c.nii.gz"
    assert read_nnunet(nnunet(tmp_path / "n")).test[0].label == tmp_path / "n/labelsTs/c.nii.gz"


def test_nnunet(tmp_path: Path) -> None:
    dataset = read_nnunet(nnunet(tmp_path / "Dataset001_Toy"))
    assert dataset.name == "Dataset001_Toy" and dataset.channels == ("T1", "T2")
    assert dataset.labels == {0: "background", 1: "tumour"}
    assert [case.id for case in dataset.training] == ["a", "b"]
    assert [path.name for path in dataset.training[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert [path.name for path in dataset.test[0].images] == ["c_0000.nii.gz", "c_0001.nii.gz"]


def test_nnunet_dataset_section(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere/x1.nii.gz", tmp_path / "elsewhere/x2.nii.gz", tmp_path / "elsewhere/l.nii.gz")
    entry = {"images": ["../elsewhere/x1.nii.gz", "../elsewhere/x2.nii.gz"], "label": "../elsewhere/l.nii.gz"}
    dataset = read_nnunet(nnunet(tmp_path / "d", dataset={"x": entry}, numTraining=1))
    assert [case.id for case in dataset.training] == ["x"]
    assert dataset.training[0].images[1].resolve() == (tmp_path / "elsewhere/x2.nii.gz").resolve()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "background", "1": "a", "4": "b"}, r"values are \[0, 1, 4\].*\[2, 3\] missing"),
        ({"1": "a", "2": "b"}, r"values are \[1, 2\].*\[0\] missing"),
        ({"background": 0, "whole": [1, 2]}, "regions_class_order is None: one label for each region"),
        ({"background": 0, "a": 1, "b": 1}, r"values \[1\] to more than one name"),
        ({"0": "background"}, "no foreground class"),
        ([0, 1], "an object of names and values expected"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_msd(msd(tmp_path, labels=labels))


def test_a_label_of_two_cases_is_told(tmp_path: Path) -> None:
    entries = [{"image": f"imagesTr/{case}.nii.gz", "label": "labelsTr/a.nii.gz"} for case in "ab"]
    problems: list[Problem] = []
    scan_msd(msd(tmp_path, training=entries), problems)
    assert [str(one) for one in problems if one.case] == [
        f"case b: {tmp_path / 'labelsTr/a.nii.gz'}: is the label of case a too"
    ]
    assert {one.severity for one in problems} == {"warning"}


def test_all_missing_files_are_listed_at_once(tmp_path: Path) -> None:
    folder = msd(tmp_path)
    (folder / "imagesTr/a.nii.gz").unlink()
    (folder / "labelsTr/b.nii.gz").unlink()
    with pytest.raises(InputError) as caught:
        read_msd(folder)
    for name in ("imagesTr/a", "labelsTr/b"):
        assert f"{folder}/{name}.nii.gz: no such file" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training": [{"image": "../x.nii.gz", "label": "labelsTr/a.nii.gz"}]},
            "outside the dataset's folder",
        ),
        (
            {"training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}] * 2},
            "case a more than once",
        ),
        ({"training": [{"image": "imagesTr/a.nii.gz"}]}, "an image and label expected"),
        ({"training": [{"image": "imagesTr/a.png", "label": "b"}]}, r"a name ending in \.nii\.gz, .* or \.gipl"),
        ({"training": []}, "numTraining is 2, but 0"),
        ({"modality": {"1": "CT"}}, "consecutive numbers from 0"),
        ({"modality": None}, "channel_names"),
        ({"numTraining": 5}, "numTraining is 5, but 2"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_msd(msd(tmp_path, **changes))


def test_missing_folder_file_and_modality(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent: no such folder"):
        read_msd(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty/dataset\.json: no such file"):
        read_nnunet(tmp_path / "empty")
    folder = nnunet(tmp_path / "n")
    (folder / "imagesTr/b_0001.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case b: b_0001\.nii\.gz missing \(2 channels expected\)"):
        read_nnunet(folder)
    with pytest.raises(InputError, match=r"file_ending is '\.mha'"):
        read_nnunet(nnunet(tmp_path / "mha", file_ending=".mha"))


def test_find_cases_by_either_naming(tmp_path: Path) -> None:
    touch(
        tmp_path / "plain/b.nii.gz",
        tmp_path / "plain/a.nii.gz",
        tmp_path / "plain/._a.nii.gz",
        tmp_path / "plain/n.txt",
    )
    assert [case.id for case in find_cases(tmp_path / "plain", ["MRI"])] == ["a", "b"]
    assert len(find_cases(tmp_path / "plain", ["MRI"] * 4)) == 2  # 4D files
    touch(tmp_path / "one/a_0000.nii.gz")
    assert [case.id for case in find_cases(tmp_path / "one", ["MRI"])] == ["a"]
    touch(tmp_path / "two/a_0000.nii.gz", tmp_path / "two/a_0001.nii.gz")
    assert [len(case.images) for case in find_cases(tmp_path / "two", ["T1w", "T2w"])] == [2]
    assert [len(case.images) for case in find_cases(tmp_path / "two/a_0001.nii.gz", ["T1w", "T2w"])] == [2]
    assert [case.id for case in find_cases(tmp_path / "plain/a.nii.gz", ["MRI"])] == ["a"]


def test_four_digit_ids_are_not_modalities(tmp_path: Path) -> None:
    touch(tmp_path / "amos_0001.nii.gz", tmp_path / "amos_0004.nii.gz")
    assert [case.id for case in find_cases(tmp_path, ["MRI"])] == ["amos_0001", "amos_0004"]
    assert [case.id for case in find_cases(tmp_path / "amos_0004.nii.gz", ["MRI"])] == ["amos_0004"]


def test_find_cases_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        find_cases(tmp_path / "x", ["MRI"])
    with pytest.raises(InputError, match=r"holds no image; files ending in \.nii\.gz"):
        find_cases(tmp_path, ["MRI"])
    touch(tmp_path / "a_0000.nii.gz", tmp_path / "b_0000.nii.gz", tmp_path / "b_0001.nii.gz")
    with pytest.raises(InputError, match=r"case a: a_0001\.nii\.gz missing"):
        find_cases(tmp_path, ["T1w", "T2w"])
    with pytest.raises(InputError, match=r"case b: b_0001\.nii\.gz not expected"):
        find_cases(tmp_path, ["MRI"])
    touch(tmp_path / "t/a_0000.nii.gz", tmp_path / "t/a.nii.gz")
    with pytest.raises(InputError, match="case a: is there twice"):
        find_cases(tmp_path / "t", ["MRI"])


def test_real_dataset(shared_data: Path) -> None:
    dataset = read_msd(shared_data / "Task04_Hippocampus")
    assert len(dataset.training) == 200 and len(dataset.test) == 60
    assert dataset.channels == ("MRI",) and dataset.labels[2] == "Posterior"


@pytest.mark.parametrize(("write", "scan"), [(write_msd, scan_msd), (write_nnunet, scan_nnunet)])
def test_a_folder_with_dots_in_its_path_is_the_same_folder(write: Any, scan: Any, tmp_path: Path) -> None:
    folder = write(tmp_path / "raw" / "Dataset")
    (tmp_path / "elsewhere").mkdir()
    problems: list[Problem] = []
    dataset = scan(tmp_path / "elsewhere" / ".." / "raw" / folder.name, problems)
    assert problems == [] and len(dataset.training) >= 5
