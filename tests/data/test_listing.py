"""In every layout, a file that looks like a scan is either listed or reported with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.labels import LabelTable
from e2enet.data.formats.listing import ending_of, list_scans, note_companions, unreadable
from e2enet.data.formats.naming import Case, has_numbered_ids
from e2enet.data.formats.problems import Problem
from e2enet.data.layouts.folder import FolderLayout
from e2enet.data.layouts.prediction import find_cases
from tests.data.folders import link, told, touch

ENDINGS = ".nii.gz, .nii, .mha, .mhd, .nrrd, .nhdr or .gipl"
TABLE = LabelTable({0: "background", 1: "organ"}, {}, {})
BTCV = FolderLayout(
    image=r"img/img{number:\d{4}}.nii.gz",
    label=r"label/label{number:\d{4}}.nii.gz",
    channels=["CT"],
    case="img{number}",
    folders={"training": "Training", "test": "Testing"},
)


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
            find_cases(tmp_path / name, ["MRI"])


def test_ids_that_end_in_four_digits_keep_them(tmp_path: Path) -> None:
    plain = [Case(f"img_{number:04d}", (tmp_path / f"img_{number:04d}.nii.gz",)) for number in range(2)]
    of_modalities = [Case("img", (tmp_path / "img_0000.nii.gz", tmp_path / "img_0001.nii.gz"))]
    assert has_numbered_ids(plain) and not has_numbered_ids(of_modalities)
    touch(tmp_path, "img_0000.nii.gz", "img_0001.nii.gz")
    assert [case.id for case in find_cases(tmp_path, ["MRI"], numbered_ids=True)] == ["img_0000", "img_0001"]
    assert [case.id for case in find_cases(tmp_path, ["T1w", "T2w"])] == ["img"]
    touch(tmp_path / "more", *(f"img_{case:04d}_{channel:04d}.nii.gz" for case in range(2) for channel in range(2)))
    for source in (tmp_path / "more", tmp_path / "more" / "img_0001_0000.nii.gz"):
        cases = find_cases(source, ["T1w", "T2w"], numbered_ids=True)
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
    cases = find_cases(tmp_path, ["MRI"], ".nii.gz", problems)
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
        find_cases(tmp_path, ["MRI"])
    cases = find_cases(tmp_path, ["MRI"], ".nrrd", [])
    assert [case.images[0].name for case in cases] == [*["a.nii.gz", "b.nii", "c.nii", "h.nrrd", "i.mhd", "j.nrrd"]]
    with pytest.raises(InputError, match=r"g\.nii\.gz: a link whose target /nowhere/x\.nii\.gz is not there"):
        find_cases(tmp_path / "g.nii.gz", ["MRI"])


def test_modalities_of_a_case_may_end_differently_and_a_dead_one_fails_the_case(tmp_path: Path) -> None:
    touch(tmp_path, "a_0000.nii.gz", "a_0001.nii", "b_0000.nii.gz")
    link(tmp_path / "b_0001.nii.gz")
    problems: list[Problem] = []
    assert [case.id for case in find_cases(tmp_path, ["T1w", "T2w"], ".nii.gz", problems)] == ["a"]
    assert [(one.case, one.severity) for one in problems] == [("b", "error")]


def test_a_folder_without_anything_to_take_says_what_there_is(tmp_path: Path) -> None:
    touch(tmp_path, "a.mnc", "imagesTr/b.nii.gz")
    with pytest.raises(InputError) as caught:
        find_cases(tmp_path, ["MRI"])
    assert f"holds no image; files ending in {ENDINGS} expected" in str(caught.value)
    assert "a.mnc: not taken: ends in .mnc" in str(caught.value) and "imagesTr: not taken: a folder" in str(
        caught.value
    )
