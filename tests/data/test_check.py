"""Every kind of problem planted in a sound dataset is found, named and graded; a sound dataset has none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.cases.sources import DataSource
from e2enet.data.checking import run
from e2enet.data.checking.across import SPACING_FACTOR
from e2enet.data.checking.run import affordable_workers, check_dataset
from e2enet.data.layouts.described import NNUNetLayout
from e2enet.system import workload

AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])
Found = list[tuple[str | None, str, str, str | None]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_sound_dataset_has_no_problem(toy: Any, num_workers: int) -> None:
    report = toy.check(num_workers)
    assert report.problems == () and report.num_errors == 0
    assert [case.case.id for case in report.facts] == list("abcdeft")
    first = report.facts[0]
    assert first.orientation == "LPS" and first.dtypes == ("int16",) and first.label_dtype == "uint8"
    assert first.voxels == {0: 354, 1: 54, 2: 24} and first.num_channels == 1
    assert first.geometry.shape == (8, 9, 6) and first.geometry.spacing == (3, 1, 1)


def shifted(millimetres: float) -> np.ndarray:
    affine = np.array([[-1.0, 0, 0, 20], [0, -1, 0, 30], [0, 0, 3, -40], [0, 0, 0, 1]])
    affine[0, 3] += millimetres
    return affine


def test_affines_within_the_tolerance_warn_of_nothing(toy: Any) -> None:
    toy.write_label("a", affine=shifted(9e-4))
    assert toy.problems() == []


def test_affines_beyond_the_tolerance_are_an_error_with_both_matrices(toy: Any) -> None:
    toy.write_label("a", affine=shifted(0.25))
    ((case, severity, text, file),) = toy.problems()
    assert (case, severity, file) == ("a", "error", "labelsTr/a.nii.gz")
    first, *matrices = text.splitlines()
    assert first.startswith("not on the grid of ") and first.endswith(
        "imagesTr/a.nii.gz: the affines differ by up to 0.25 mm, at most 0.1 mm expected; "
        "e2enet check .. repair=FOLDER writes copies of labels with their images' affines"
    )
    assert matrices[0] == "image:" and matrices[1].split() == ["[[", "-1.", "0.", "0.", "20.]"]
    assert matrices[5] == "label:" and matrices[6].split() == ["[[", "-1.", "0.", "0.", "20.25]"]


def test_another_shape(toy: Any) -> None:
    toy.write_label("a", shape=(8, 9, 7))
    ((case, severity, text, _),) = toy.problems()
    assert (case, severity) == ("a", "error")
    assert text.endswith("imagesTr/a.nii.gz: shapes (8, 9, 6) and (8, 9, 7), the same grid expected")


def test_values_that_are_no_numbers(toy: Any) -> None:
    image = np.ones((8, 9, 6), np.float32)
    image[0, 0, 0], image[1, 1, 1], image[2, 2, 2] = np.nan, np.inf, 5
    toy.write_image("b", image)
    text = "2 voxels are NaN or infinite, finite values expected"
    assert toy.problems() == [("b", "error", text, "imagesTr/b.nii.gz")]


def test_files_that_cannot_be_read(toy: Any) -> None:
    image, label, text = toy.image("a"), toy.label("b"), toy.image("c")
    for file, kept in ((image, 20_000), (label, -3)):  # the label loses checksum bytes only, no voxel
        save = toy.write_image if file is image else toy.write_label
        noise = toy.rng.integers(0, 3, (40, 40, 40), dtype=np.int16)
        save("a" if file is image else "b", noise)
        file.write_bytes(file.read_bytes()[:kept])
    text.write_text("not an image")
    damaged = bytearray(toy.image("d").read_bytes())
    damaged[-6] ^= 0xFF
    toy.image("d").write_bytes(damaged)
    toy.label("e").write_bytes(b"")
    found: Found = toy.problems()
    assert [(case, severity, file) for case, severity, _, file in found] == [
        ("a", "error", "imagesTr/a.nii.gz"),
        ("b", "error", "labelsTr/b.nii.gz"),
        ("c", "error", "imagesTr/c.nii.gz"),
        ("d", "error", "imagesTr/d.nii.gz"),
        ("e", "error", "labelsTr/e.nii.gz"),
    ]
    cut = "the voxels cannot be read, the file may be cut off ("
    assert found[0][2].startswith(cut) and found[1][2].startswith(cut)
    assert "cannot be read as an image" in found[2][2] and "cannot be read as an image" in found[4][2]
    assert found[3][2].startswith(f"{cut}CRC check failed")


def test_a_header_that_promises_too_much(toy: Any, tmp_path: Path) -> None:
    path = toy.image("a")
    header = nib.Nifti1Header()
    header.set_data_shape((8000, 8000, 8000))
    header.set_data_dtype(np.float64)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with nib.openers.Opener(str(path), "wb") as stream:
        stream.write(header.binaryblock + bytes(400))
    assert "bytes of voxels expected, the file has" in toy.problems()[0][2]


def test_label_values(toy: Any) -> None:
    label = np.zeros((8, 9, 6), np.uint8)
    label[0, 0, :2], label[4:, 4:] = 9, 2
    toy.write_label("a", label)
    toy.write_label("b", np.zeros((8, 9, 6), np.uint8))
    toy.write_label("c", label.clip(0, 2).astype(np.float32))
    toy.write_label("d", label - 0.5)
    toy.write_label("e", label.clip(0, 2).astype(np.int16) - 1)
    assert toy.problems() == [
        (
            "a",
            "error",
            "holds label values 9 (2 voxels); those of the dataset expected: 0 to 2",
            "labelsTr/a.nii.gz",
        ),
        ("d", "error", "holds the value 8.5, whole numbers (labels) expected", "labelsTr/d.nii.gz"),
        ("e", "error", "values from -1 to 1, labels from 0 to 32767 expected", "labelsTr/e.nii.gz"),
        ("b", "warning", "no foreground: every voxel is background", "labelsTr/b.nii.gz"),
        (
            "c",
            "warning",
            "labels are stored as float32; they are whole numbers and read as such",
            "labelsTr/c.nii.gz",
        ),
    ]


def test_labels_that_nobody_has(toy: Any) -> None:
    for case in "abcdef":
        toy.write_label(case, np.arange(432, dtype=np.uint8).reshape(8, 9, 6) % 2)
    text = "no training case has a voxel of label 2 (spleen)"
    assert toy.check().problems[0].problem == text and toy.check().num_errors == 0
    for case in "abcdef":
        toy.write_label(case, np.zeros((8, 9, 6), np.uint8))
    found = toy.problems()
    assert found[0][:3] == (None, "error", "no training case has any labelled voxel, foreground expected")
    assert [case for case, severity, *_ in found if severity == "warning"] == list("abcdef")


def test_the_same_image_under_two_ids(toy: Any) -> None:
    array = np.asarray(nib.load(toy.image("b")).dataobj)
    toy.write_image("e", array)  # another file, the same voxels
    toy.write_image("t", array, part="Ts")
    found = toy.problems()
    assert [(case, severity, file) for case, severity, _, file in found] == [
        ("e", "error", "imagesTr/e.nii.gz"),
        ("t", "error", "imagesTs/t.nii.gz"),
    ]
    assert all(f"voxel for voxel, as case b (training): {toy.image('b')}" in text for _, _, text, _ in found)


def test_missing_and_extra_files_and_ids_that_come_twice(toy: Any) -> None:
    toy.image("a").unlink()
    toy.label("b").unlink()
    toy.write_image("extra")
    entries = json.loads((toy.folder / "dataset.json").read_text())["training"]
    toy.describe(training=[*entries, entries[2]])
    found = toy.problems()
    assert ("a", "error", "no such file", "imagesTr/a.nii.gz") in found
    assert ("b", "error", "no such file", "labelsTr/b.nii.gz") in found
    assert (None, "warning", "belongs to no case of the dataset", "imagesTr/extra.nii.gz") in found
    assert ("c", "error", "training lists case c more than once", None) in found and len(found) == 4


def test_odd_ones_out(toy: Any) -> None:
    toy.write_image("a", affine=np.diag([1.0, -1, 3, 1]))
    toy.write_label("a", affine=np.diag([1.0, -1, 3, 1]))
    thick = np.diag([-1.0, -1, 3 * (SPACING_FACTOR + 1), 1])
    toy.write_image("b", affine=thick)
    toy.write_label("b", affine=thick)
    toy.write_image("c", shape=(8, 9, 1))
    toy.write_label("c", shape=(8, 9, 1))
    toy.write_image("d", np.full((8, 9, 6), 3, np.int16))
    assert toy.problems() == [
        ("a", "warning", "stored in orientation RPS, 6 of 7 cases in LPS", "imagesTr/a.nii.gz"),
        (
            "b",
            "warning",
            "voxels of 12 x 1 x 1 mm, the median is 3 x 1 x 1 mm (depth first): is its header right?",
            "imagesTr/b.nii.gz",
        ),
        ("c", "warning", "an image of 1 x 8 x 9 voxels (depth first): a single slice", "imagesTr/c.nii.gz"),
        ("d", "warning", "every voxel has the value 3", "imagesTr/d.nii.gz"),
    ]


def test_slices_across_another_axis_than_the_others(toy: Any) -> None:
    """Two short-axis stacks of a heart: voxels of 3.2 x 1 x 1 mm, the normal of one is nearest to another RAS axis."""
    for case, degrees in (("a", 40), ("b", 50)):
        cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turn = np.array([[-1, 0, 0], [0, -cosine, -sine], [0, -sine, cosine]])
        affine = nib.affines.from_matvec(turn * (1, 1, 3.2))
        toy.write_image(case, affine=affine)
        toy.write_label(case, affine=affine)
    ((_, _, orientation, _), (case, severity, text, file)) = toy.problems()
    assert "orientation" in orientation and (case, severity, file) == ("b", "warning", "imagesTr/b.nii.gz")
    assert text == (
        "slices of 3.2 mm across the anterior-posterior axis, those of the training data lie across the "
        "superior-inferior axis: this scan is resampled within its slices, expect poor results"
    )


def test_mixed_orientations_and_spacings_are_one_warning_each(toy: Any) -> None:
    for case in "abc":
        affine = np.diag([1.0, 1, 30, 1])
        toy.write_image(case, affine=affine)
        toy.write_label(case, affine=affine)
    assert toy.problems() == [
        (None, "warning", "cases are stored in several orientations: LPS 4, RAS 3", None),
        (
            None,
            "warning",
            "voxel sizes are mixed: from 3 x 1 x 1 mm to 30 x 1 x 1 mm, the median is 3 x 1 x 1 mm (depth first)",
            None,
        ),
    ]


def test_an_image_of_zeros(toy: Any) -> None:
    toy.write_image("a", np.zeros((8, 9, 6), np.int16))
    text = "the image is zero everywhere, other values expected"
    assert toy.problems() == [("a", "error", text, "imagesTr/a.nii.gz")]


def test_labels_beyond_the_nonzero_box(toy: Any) -> None:
    image, label = np.zeros((8, 9, 6), np.int16), np.zeros((8, 9, 6), np.uint8)
    image[2:6, 2:6, 1:4] = 5
    label[4:8, 3:5, 2] = 1  # 4 of its 8 voxels lie beyond the box
    toy.write_image("a", image)
    toy.write_label("a", label)
    text = "4 of 8 labelled voxels lie where the image is cropped away, as zero: never predicted"
    assert toy.problems() == [("a", "warning", text, "labelsTr/a.nii.gz")]
    toy.write_label("a", np.roll(label, 3, axis=2))
    text = "all its 8 labelled voxels lie outside of the box of the image's nonzero voxels: is it this image's?"
    assert toy.problems() == [("a", "error", text, "labelsTr/a.nii.gz")]


def test_number_of_channels(toy: Any) -> None:
    toy.write_image("a", shape=(8, 9, 6, 3))
    assert toy.problems() == [("a", "error", "3 channels, 1 expected", "imagesTr/a.nii.gz")]


def test_modalities_on_different_grids(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "Dataset001_Two"
    for case in "abcde":
        for channel in range(2):
            moved = AFFINE.copy()
            moved[2, 3] = 0.5 if (case, channel) == ("c", 1) else 0
            image = nib.Nifti1Image(rng.normal(size=(6, 6, 4)).astype(np.float32), moved)
            (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
            nib.save(image, folder / "imagesTr" / f"{case}_000{channel}.nii.gz")
        (folder / "labelsTr").mkdir(exist_ok=True)
        label = (rng.uniform(size=(6, 6, 4)) < 0.5).astype(np.uint8)
        nib.save(nib.Nifti1Image(label, AFFINE), folder / "labelsTr" / f"{case}.nii.gz")
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "tumour": 1}}
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".nii.gz", "numTraining": 5}))
    (problem,) = check_dataset(DataSource(folder, NNUNetLayout()), 0).problems
    assert (problem.case, problem.severity) == ("c", "error")
    assert problem.file == str(folder / "imagesTr" / "c_0001.nii.gz")
    assert "c_0000.nii.gz: the affines differ by up to 0.5 mm" in problem.problem
    assert "\nfirst channel:\n" in problem.problem and "\nthis channel:\n" in problem.problem
    for name in ("b_0000", "b_0001", "c_0001"):
        nib.save(nib.Nifti1Image(np.zeros((6, 6, 4), np.float32), AFFINE), folder / "imagesTr" / f"{name}.nii.gz")
    assert [(one.case, one.problem) for one in check_dataset(DataSource(folder, NNUNetLayout()), 0).problems] == [
        ("b", "the image is zero everywhere, other values expected"),
        ("c", "every voxel has the value 0"),
    ]


def test_a_worker_that_dies_is_told_with_the_case(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "examine_case", sys.exit)
    found = [one for one in toy.check(2).problems if one.case]
    assert [one.case for one in found] == list("abcdeft")
    expected = "could not be looked through: its worker process ended with exit code 1"
    assert {one.problem for one in found} == {expected}


def test_a_folder_that_cannot_be_scanned(toy: Any, tmp_path: Path) -> None:
    (toy.folder / "dataset.json").write_text("{")
    report = toy.check()
    assert report.dataset is None and report.num_errors == 1
    assert report.problems[0].problem.startswith("not valid JSON (")
    assert report.problems[0].file == str(toy.folder / "dataset.json")
    toy.folder = tmp_path / "nowhere"
    with pytest.raises(InputError, match=r"nowhere: no such folder \(paths\.data is its parent"):
        toy.check()


def test_workers_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload.os, "sched_getaffinity", lambda pid: range(64))
    monkeypatch.setattr(run, "available_memory", lambda: 10 * 2**30)
    assert affordable_workers([10**6] * 100) == 31  # 0.8 * 10 GiB / 257 MiB
    assert affordable_workers([10**6] * 3) == 3
    assert affordable_workers([4 * 2**30, 10]) == 1
    assert affordable_workers([100 * 2**30] * 4) == 1  # at least one
