"""The layouts of public datasets lose no scan: each is listed, or reported with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.labels import LabelTable
from e2enet.data.formats.layout import read_msd, read_nnunet, scan_msd, scan_nnunet
from e2enet.data.formats.problems import Problem
from e2enet.data.layouts.folder import FolderLayout
from e2enet.data.layouts.prediction import BRATS, find_cases
from tests.data.folders import describe, link, told, touch

ENDINGS = ".nii.gz, .nii, .mha, .mhd, .nrrd, .nhdr or .gipl"
TABLE = LabelTable({0: "background", 1: "organ"}, {}, {})
BTCV = FolderLayout(
    image=r"img/img{number:\d{4}}.nii.gz",
    label=r"label/label{number:\d{4}}.nii.gz",
    channels=["CT"],
    case="img{number}",
    folders={"training": "Training", "test": "Testing"},
)


def brats(root: Path, case: str, parts: str = "flair t1 t1ce t2 seg") -> None:
    touch(root, *(f"{case}/{case}_{part}.nii.gz" for part in parts.split()))


def test_folders_of_brats_lose_nothing(tmp_path: Path) -> None:
    brats(tmp_path, "B_1")
    brats(tmp_path, "B_2", "t1 t1ce t2 seg")  # lacks the file that identifies a case
    brats(tmp_path, "B_3", "flair t1 t1ce")
    link(tmp_path / "B_3/B_3_t2.nii.gz")
    touch(tmp_path, "B_1/.x.nii.gz", "B_4_flair.nii.gz", "B_5.nii.gz")
    (tmp_path / "B_6").mkdir()
    left = {
        ("warning", "not taken: hidden, its name begins with a dot", "B_1/.x.nii.gz"),
        ("warning", "not taken: a folder without a scan", "B_6"),
        ("warning", "not taken: in no folder of a case (2: B_4_flair.nii.gz, B_5.nii.gz)", "."),
        ("error", "B_2_flair.nii.gz missing", "B_2"),
    }
    problems: list[Problem] = []
    assert [case.id for case in find_cases(tmp_path, BRATS.channels, problems=problems)] == ["B_1"]
    dead = "a link whose target /nowhere/x.nii.gz is not there"
    assert told(problems, tmp_path) == left | {("error", dead, "B_3/B_3_t2.nii.gz")}
    problems = []
    dataset = BRATS.scan(tmp_path, problems, TABLE)
    assert [case.id for case in dataset.training] == ["B_1"] and dataset.test == ()
    assert told(problems, tmp_path) == left | {
        ("warning", f"{dead}: the test case is left out", "B_3/B_3_t2.nii.gz"),
        ("warning", "has no label: a test case", "B_3/B_3_flair.nii.gz"),
    }


def test_btcv_tells_of_what_it_does_not_take(tmp_path: Path) -> None:
    touch(tmp_path, "Training/img/img0001.nii.gz", "Training/label/label0001.nii.gz", "Training/img/.img0002.nii.gz")
    touch(tmp_path, "Testing/img/scan7.nii.gz", "Testing/img/img0061.mgz")
    problems: list[Problem] = []
    BTCV.scan(tmp_path, problems, TABLE)
    assert told(problems, tmp_path) == {
        ("warning", "not taken: hidden, its name begins with a dot", "Training/img/.img0002.nii.gz"),
        ("warning", r"a name like img{number:\d{4}}.nii.gz expected", "Testing/img/scan7.nii.gz"),
        ("warning", f"not taken: ends in .mgz, {ENDINGS} expected", "Testing/img/img0061.mgz"),
    }


def decathlon(folder: Path, **content: Any) -> Path:
    touch(folder, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    return describe(folder, **({"training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]} | content))


def test_a_decathlon_folder_tells_of_unlisted_scans_of_any_ending(tmp_path: Path) -> None:
    folder = decathlon(tmp_path)
    touch(
        folder,
        "imagesTr/b.nii",
        "imagesTr/c.mgz",
        "imagesTr/d.mha",
        "labelsTr/.a.nii.gz",
        "labelsTs/x.nii.gz",
        "imagesTr/._a.nii.gz",
    )
    problems: list[Problem] = []
    scan_msd(folder, problems)
    assert told(problems, folder) == {
        ("warning", "belongs to no case of the dataset (2: b.nii, d.mha)", "imagesTr"),
        ("warning", f"not taken: ends in .mgz, {ENDINGS} expected", "imagesTr/c.mgz"),
        ("warning", "not taken: hidden, its name begins with a dot", "labelsTr/.a.nii.gz"),
        ("warning", "belongs to no case of the dataset", "labelsTs/x.nii.gz"),
    }


def test_listed_test_images_that_are_absent_are_a_warning(tmp_path: Path) -> None:
    folder = decathlon(
        tmp_path, test=["imagesTs/t.nii.gz", "imagesTs/u.nii.gz", {"image": "imagesTs/v.nii.gz", "label": "l.nii.gz"}]
    )
    touch(folder, "imagesTs/u.nii.gz", "imagesTs/v.nii.gz")
    problems: list[Problem] = []
    dataset = scan_msd(folder, problems)
    assert [(case.id, case.label) for case in dataset.test] == [("u", None), ("v", None)]
    assert told(problems, folder) == {
        ("warning", "no such file: the test case is left out", "imagesTs/t.nii.gz"),
        ("warning", "no such file: the test case is not scored", "l.nii.gz"),
    }
    link(folder / "imagesTr/a.nii.gz")
    with pytest.raises(InputError, match=r"case a: .*imagesTr/a\.nii\.gz: a link whose target /nowhere/x\.nii\.gz is"):
        read_msd(folder)


def test_hidden_files_that_are_listed(tmp_path: Path) -> None:
    listed = [{"image": f"imagesTr/{name}.nii.gz", "label": "labelsTr/a.nii.gz"} for name in ("a", "._a", ".b")]
    folder = decathlon(tmp_path, training=listed)
    problems: list[Problem] = []
    assert [case.id for case in scan_msd(folder, problems).training] == ["a"]
    text = "training image 'imagesTr/.b.nii.gz': left out, hidden: its name begins with a dot"
    assert told(problems, folder) == {("warning", text, "dataset.json")}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_dataset_json_of_windows_is_read(tmp_path: Path, encoding: str) -> None:
    listed = [{"image": ".\\imagesTr\\a.nii.gz", "label": "labelsTr\\a.nii.gz"}]
    folder = decathlon(tmp_path, encoding=encoding, training=listed, test=["imagesTs\\b.nii.gz"])
    touch(folder, "imagesTs/b.nii.gz")
    dataset = read_msd(folder)
    assert [case.images[0] for case in (*dataset.training, *dataset.test)] == [
        folder / "imagesTr/a.nii.gz",
        folder / "imagesTs/b.nii.gz",
    ]
    assert dataset.training[0].label == folder / "labelsTr/a.nii.gz" and dataset.labels[1] == "Lebertöne"
    with pytest.raises(InputError, match="lies outside the dataset's folder"):
        read_msd(decathlon(folder, test=["..\\..\\b.nii.gz"]))


def test_backslashes_in_the_dataset_section_of_nnunet(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTr/spare.nii.gz")
    entry = {"images": ["imagesTr\\a.nii.gz"], "label": "labelsTr\\a.nii.gz"}
    problems: list[Problem] = []
    dataset = scan_nnunet(describe(tmp_path, dataset={"a": entry}), problems)
    assert dataset.training[0].files == (tmp_path / "imagesTr/a.nii.gz", tmp_path / "labelsTr/a.nii.gz")
    assert told(problems, tmp_path) == {("warning", "belongs to no case of the dataset", "imagesTr/spare.nii.gz")}


def nnunet(folder: Path, images: str = ".nii.gz", labels: str = ".nii.gz", **content: Any) -> Path:
    touch(folder, *(f"imagesTr/{c}_0000{images}" for c in "ab"), *(f"labelsTr/{c}{labels}" for c in "ab"))
    return describe(folder, **content)


@pytest.mark.parametrize(
    ("folder", "content", "message"),
    [
        ({}, {"file_ending": ".nii"}, r"dataset\.json: file_ending is '\.nii', of which there is no training image; "),
        ({}, {"file_ending": ".mha"}, r"file_ending is '\.mha', of which there is no training image; "),
        ({}, {"file_ending": ".png"}, r"file_ending is '\.png': \.nii\.gz, .* or \.gipl expected; "),
        ({}, {"file_ending": "nii.gz"}, r"file_ending is 'nii\.gz': .*; "),
    ],
)
def test_a_wrong_file_ending_says_which_are_there(tmp_path: Path, folder: Any, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_nnunet(nnunet(tmp_path, **folder, **content))
    assert str(caught.value).endswith(f"{tmp_path / 'imagesTr'} holds 2 of .nii.gz")
    assert len(str(caught.value).splitlines()) == 2  # no problem that only follows from this one


def test_labels_of_another_ending_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_nnunet(nnunet(tmp_path, labels=".nii"))
    expected = "labels ending in .nii.gz expected, as the images do; there are 2 of .nii"
    assert str(caught.value).splitlines()[1:] == [f"  - {tmp_path / 'labelsTr'}: {expected}"]


def test_nnunets_folders_lose_nothing(tmp_path: Path) -> None:
    folder = nnunet(tmp_path)
    touch(folder, "imagesTr/c_0000.nii", "imagesTs/d_0001.nii.gz", "imagesTs/e_0000.nii.gz", "labelsTs/f.nii.gz")
    link(folder / "imagesTs/g_0000.nii.gz")
    dead = "a link whose target /nowhere/x.nii.gz is not there: the test case is left out"
    problems: list[Problem] = []
    dataset = scan_nnunet(folder, problems)
    assert [case.id for case in dataset.test] == ["e"]
    assert told([one for one in problems if one.file], folder) == {
        ("warning", "not taken: ends in .nii, .nii.gz expected", "imagesTr/c_0000.nii"),
        ("warning", "belongs to no case of the dataset", "labelsTs/f.nii.gz"),
        ("warning", dead, "imagesTs/g_0000.nii.gz"),
    }
    (other,) = [one for one in problems if not one.file]
    assert (other.case, other.severity) == ("d", "warning") and "d_0000.nii.gz missing" in other.problem


def test_folders_that_are_links_to_nowhere_are_told(tmp_path: Path) -> None:
    lost = "a link whose target /nowhere/x.nii.gz is not there"
    folder = nnunet(tmp_path / "nnunet")
    for part in ("imagesTs", "labelsTs"):
        link(folder / part)
    problems: list[Problem] = []
    assert len(scan_nnunet(folder, problems).training) == 2
    assert told(problems, folder) == {
        ("warning", f"not looked into: {lost}", f"{part}Ts") for part in ("images", "labels")
    }
    (folder / "labelsTr").rename(tmp_path / "moved")
    link(folder / "labelsTr")
    with pytest.raises(InputError) as caught:
        read_nnunet(folder)
    assert str(caught.value).splitlines()[1:] == [f"  - {folder / 'labelsTr'}: {lost}"]
    (folder / "labelsTr").unlink()
    (folder / "labelsTr").touch()
    with pytest.raises(InputError, match="labelsTr: a file, a folder expected"):
        read_nnunet(folder)
    touch(tmp_path, *(f"BTCV/Training/{kind}/{kind}0001.nii.gz" for kind in ("img", "label")))
    link(tmp_path / "BTCV/Testing/img")
    problems = []
    BTCV.scan(tmp_path / "BTCV", problems, TABLE)
    assert told(problems, tmp_path) == {("warning", f"not looked into: {lost}", "BTCV/Testing/img")}


def test_case_folders_are_not_lost(tmp_path: Path) -> None:
    parts = ("flair", "t1", "t1ce", "t2", "seg")
    touch(tmp_path, *(f"{case}/{case}_{part}.nii.gz" for case in ("a", ".h") for part in parts), ".git/config")
    link(tmp_path / "b")
    dead = ("error", "a link whose target /nowhere/x.nii.gz is not there", "b")
    hidden = ("warning", "not taken: hidden, its name begins with a dot", ".h")
    problems: list[Problem] = []
    assert [case.id for case in BRATS.scan(tmp_path, problems, TABLE).training] == ["a"]
    assert told(problems, tmp_path) == {dead, hidden} and problems[0].case == "b"
    problems = []
    assert [case.id for case in find_cases(tmp_path, BRATS.channels, ".nii.gz", problems)] == ["a"]
    assert told(problems, tmp_path) == {dead, hidden}
    plain = tmp_path / "plain"
    touch(plain, "a.nii.gz", ".h/c.nii.gz")
    link(plain / "b")
    problems = []
    assert [case.id for case in find_cases(plain, ["MRI"], ".nii.gz", problems)] == ["a"]
    assert {(severity, file) for severity, _, file in told(problems, plain)} == {("warning", ".h"), ("warning", "b")}
