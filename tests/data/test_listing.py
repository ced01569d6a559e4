"""In every layout, a file that looks like a scan is either listed or reported with a reason."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.labels import LabelTable
from e2enet.data.formats.layout import read_msd, read_nnunet, scan_msd, scan_nnunet
from e2enet.data.formats.listing import ending_of, list_scans, note_companions, unreadable
from e2enet.data.formats.naming import Case, has_numbered_ids
from e2enet.data.formats.problems import Problem
from e2enet.data.layouts.folder import FolderLayout
from e2enet.data.layouts.prediction import BRATS, find_cases

ENDINGS = ".nii.gz, .nii, .mha, .mhd, .nrrd, .nhdr or .gipl"
TABLE = LabelTable({0: "background", 1: "organ"}, {}, {})
BTCV = FolderLayout(
    image=r"img/img{number:\d{4}}.nii.gz",
    label=r"label/label{number:\d{4}}.nii.gz",
    channels=["CT"],
    case="img{number}",
    folders={"training": "Training", "test": "Testing"},
)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def link(path: Path) -> Path:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/nowhere/x.nii.gz")
    return path


def describe(folder: Path, encoding: str = "utf-8", **content: Any) -> Path:
    text = json.dumps({"modality": {"0": "CT"}, "labels": {"0": "background", "1": "Lebertöne"}} | content)
    (folder / "dataset.json").write_bytes(text.replace("\\u00f6", "ö").encode(encoding))
    return folder


def told(problems: list[Problem], folder: Path) -> set[tuple[str, str, str]]:
    return {(one.severity, one.problem, str(Path(str(one.file)).relative_to(folder))) for one in problems}


def test_every_kind_of_file_in_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", ".hidden.nii.gz", ".tmp-1-x.nii.gz", "X.NII", "y.nii.gz.part", "z.mha", "._b.nii.gz")
    touch(tmp_path, "notes.txt", "niiched.csv", "folder.nii/x.nii", "slice.dcm", "w.nii", "scores.json")
    (tmp_path / "._real.nii.gz").write_bytes(b"\x1f\x8b and so on")
    touch(tmp_path, "line\nbreak.nii.gz", os.fsdecode(b"gr\xf6\xdfe.nii.gz"), f"{194 * 'l'}.nii.gz")
    dead = link(tmp_path / "a.nii.gz")
    listing = list_scans(tmp_path, [".nii.gz"])
    assert listing.files == (dead, tmp_path / "b.nii.gz") and listing.companions == (tmp_path / "._b.nii.gz",)
    name = "not taken: a name of at most 200 bytes and without control characters expected, in the system's encoding"
    assert {reason: [path.name for path in paths] for reason, paths in listing.left.items()} == {
        "not taken: hidden, its name begins with a dot": ["._real.nii.gz", ".hidden.nii.gz"],
        "not taken: half written, by a run that is at work or was killed": [".tmp-1-x.nii.gz"],
        "not taken: ends in .NII, .nii.gz expected": ["X.NII"],
        "not taken: ends in .nii, .nii.gz expected": ["folder.nii", "w.nii"],
        "not taken: ends in .nii.gz.part, .nii.gz expected": ["y.nii.gz.part"],
        "not taken: ends in .mha, .nii.gz expected": ["z.mha"],
        "not taken: ends in .dcm, .nii.gz expected": ["slice.dcm"],
        name: [os.fsdecode(b"gr\xf6\xdfe.nii.gz"), "line\nbreak.nii.gz", f"{194 * 'l'}.nii.gz"],
    }
    (told_names,) = [one for one in listing.problems() if one.problem.startswith(name)]
    assert told_names.problem.endswith(rf"(3: gr\udcf6\udcdfe.nii.gz, line\nbreak.nii.gz, {194 * 'l'}.nii.gz)")
    assert listing.num_left == 12 and "2 of .nii, 8 of .nii.gz, 1 of .nii.gz.part" in listing.endings()
    assert ending_of("a.b.nii.gz") == ".nii.gz" and unreadable(tmp_path / "b.nii.gz") is None
    assert unreadable(dead) == "a link whose target /nowhere/x.nii.gz is not there"
    assert unreadable(tmp_path / "folder.nii") == "a folder, a file expected"
    assert note_companions([tmp_path]) == [
        f"passed over: what macOS keeps of other files (1 named like ._b.nii.gz, {tmp_path})"
    ]
    assert list_scans(tmp_path / "nowhere").files == () and note_companions([tmp_path / "folder.nii"]) == []


def test_one_scan_to_predict_is_judged_by_its_name_too(tmp_path: Path) -> None:
    touch(tmp_path, "line\nbreak.nii.gz", "A.NII.GZ")
    for name in ("line\nbreak.nii.gz", "A.NII.GZ"):
        with pytest.raises(
            InputError, match=r"a file ending in \.nii\.gz, .* or \.gipl expected, its name of at most 200 bytes"
        ):
            find_cases(tmp_path / name, 1)


def test_ids_that_end_in_four_digits_keep_them(tmp_path: Path) -> None:
    plain = [Case(f"img_{number:04d}", (tmp_path / f"img_{number:04d}.nii.gz",)) for number in range(2)]
    of_modalities = [Case("img", (tmp_path / "img_0000.nii.gz", tmp_path / "img_0001.nii.gz"))]
    assert has_numbered_ids(plain) and not has_numbered_ids(of_modalities)
    touch(tmp_path, "img_0000.nii.gz", "img_0001.nii.gz")
    assert [case.id for case in find_cases(tmp_path, 1, numbered_ids=True)] == ["img_0000", "img_0001"]
    assert [case.id for case in find_cases(tmp_path, 2)] == ["img"]
    touch(tmp_path / "more", *(f"img_{case:04d}_{channel:04d}.nii.gz" for case in range(2) for channel in range(2)))
    for source in (tmp_path / "more", tmp_path / "more" / "img_0001_0000.nii.gz"):
        cases = find_cases(source, 2, numbered_ids=True)
        assert [case.id for case in cases][-1] == "img_0001" and all(len(case.images) == 2 for case in cases)


def test_a_reason_that_many_share_is_one_line(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{letter}.mgz" for letter in "abcde"))
    (problem,) = list_scans(tmp_path).problems()
    assert problem.problem == f"not taken: ends in .mgz, {ENDINGS} expected (5: a.mgz, b.mgz, c.mgz and 2 more)"
    assert (problem.case, problem.severity, problem.file) == (None, "warning", str(tmp_path))


def test_scans_to_predict_of_all_endings_are_taken(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "b.nii", "c.nii", "c.nii.gz", ".d.nii.gz", "e.mgz", "more/f.nii.gz")
    touch(tmp_path, "h.nrrd", "h.nii.gz", "i.mhd", "i.raw", "j.nrrd", "j.mha")
    link(tmp_path / "g.nii.gz")
    problems: list[Problem] = []
    cases = find_cases(tmp_path, 1, ".nii.gz", problems)
    assert [case.images[0].name for case in cases] == [*["a.nii.gz", "b.nii", "c.nii.gz", "h.nii.gz", "i.mhd", "j.mha"]]
    assert told(problems, tmp_path) == {
        ("warning", "not taken: beside it is the same name with .nii.gz (2: c.nii, h.nrrd)", "."),
        ("warning", "not taken: beside it is the same name with .mha", "j.nrrd"),
        ("warning", "not taken: hidden, its name begins with a dot", ".d.nii.gz"),
        ("warning", f"not taken: ends in .mgz, {ENDINGS} expected", "e.mgz"),
        ("warning", "not taken: a folder that holds scans", "more"),
        ("error", "a link whose target /nowhere/x.nii.gz is not there", "g.nii.gz"),
    }
    with pytest.raises(InputError, match=r"case g: .*a link whose target"):
        find_cases(tmp_path, 1)
    cases = find_cases(tmp_path, 1, ".nrrd", [])
    assert [case.images[0].name for case in cases] == [*["a.nii.gz", "b.nii", "c.nii", "h.nrrd", "i.mhd", "j.nrrd"]]
    with pytest.raises(InputError, match=r"g\.nii\.gz: a link whose target /nowhere/x\.nii\.gz is not there"):
        find_cases(tmp_path / "g.nii.gz", 1)


def test_modalities_of_a_case_may_end_differently_and_a_dead_one_fails_the_case(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii", "b_0000.nii.gz")
    link(tmp_path / "b_0001.nii.gz")
    problems: list[Problem] = []
    assert [case.id for case in find_cases(tmp_path, 2, ".nii.gz", problems)] == ["a"]
    assert [(one.case, one.severity) for one in problems] == [("b", "error")]


def test_a_folder_without_anything_to_take_says_what_there_is(tmp_path: Path) -> None:
    touch(tmp_path, "a.mnc", "imagesTr/b.nii.gz")
    with pytest.raises(InputError) as caught:
        find_cases(tmp_path, 1)
    assert f"holds no image; files ending in {ENDINGS} expected" in str(caught.value)
    assert "a.mnc: not taken: ends in .mnc" in str(caught.value) and "imagesTr: not taken: a folder" in str(
        caught.value
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
    assert [case.id for case in find_cases(tmp_path, 4, problems=problems)] == ["B_1"]
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
    assert [case.id for case in find_cases(tmp_path, 4, ".nii.gz", problems)] == ["a"]
    assert told(problems, tmp_path) == {dead, hidden}
    plain = tmp_path / "plain"
    touch(plain, "a.nii.gz", ".h/c.nii.gz")
    link(plain / "b")
    problems = []
    assert [case.id for case in find_cases(plain, 1, ".nii.gz", problems)] == ["a"]
    assert {(severity, file) for severity, _, file in told(problems, plain)} == {("warning", ".h"), ("warning", "b")}
