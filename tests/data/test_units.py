"""Metres and microns are read in mm, as by ITK; every command reports impossible voxel sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from e2enet.data.check import main as check
from e2enet.data.checking.repair import repair_labels
from e2enet.data.formats.grid import Unit, millimetres_per_unit
from e2enet.data.formats.itk import write_itk
from e2enet.data.formats.naming import Case
from e2enet.data.formats.opening import open_image
from e2enet.data.formats.remarks import scan_warnings
from e2enet.data.formats.volume import read_geometry, read_volume, write_label_image
from e2enet.data.prepare import main as prepare
from e2enet.evaluation.images import grid_problems, voxel_spacing

AFFINE = np.array([[-0.9, 0, 0, 120], [0, 0, 2.5, -80], [0, 0.8, 0, 40], [0, 0, 0, 1]])
UNITS = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}


def save(path: Path, affine: np.ndarray, unit: str, forms: str = "sq", qform: np.ndarray | None = None) -> Path:
    """Save a label of one voxel whose header counts in `unit`. Only the forms (s, q) in `forms` get a code."""
    voxels = np.zeros((4, 5, 6), np.uint8)
    voxels[1, 2, 3] = 1
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units(unit, "sec")
    image.set_sform(affine, int("s" in forms))
    image.set_qform(affine if qform is None else qform, int("q" in forms))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def itk_affine(path: Path) -> np.ndarray:
    """Return voxel -> mm in RAS as SimpleITK reads the file; its own coordinates are LPS."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag((-1, -1, 1, 1)) @ affine


@pytest.mark.parametrize("forms", ["s", "q", "sq"])
@pytest.mark.parametrize("unit", list(UNITS))
def test_a_header_is_read_as_itk_reads_it(tmp_path: Path, unit: str, forms: str) -> None:
    path = save(tmp_path / "a.nii.gz", AFFINE, unit, forms)
    geometry = read_geometry(path, depth_axis=1)
    np.testing.assert_allclose(geometry.affine, itk_affine(path), rtol=1e-6, atol=1e-6)
    assert geometry.spacing == pytest.approx([size * UNITS[unit] for size in (2.5, 0.9, 0.8)])
    assert voxel_spacing(path) == pytest.approx([size * UNITS[unit] for size in (0.9, 0.8, 2.5)])


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize(("unit", "factor"), [("m", 1000.0), ("mm", 1.0), ("um", 0.001)])
def test_a_unit_that_is_given_wins_over_the_header(tmp_path: Path, ending: str, unit: Unit, factor: float) -> None:
    path = save(tmp_path / "a.nii.gz", AFFINE, "meter")
    if ending == ".nrrd":
        path = tmp_path / "a.nrrd"
        write_itk(path, np.zeros((4, 5, 6), np.uint8), AFFINE)
    scaled = AFFINE.copy()
    scaled[:3] *= factor
    image = open_image(path, unit)
    np.testing.assert_allclose(image.affine, scaled, rtol=1e-6, atol=1e-6)
    assert image.header is None or millimetres_per_unit(image.header) == factor
    assert read_geometry(path, 1, unit).spacing == pytest.approx([size * factor for size in (2.5, 0.9, 0.8)])


@pytest.mark.parametrize("forms", ["s", "q", "sq"])
@pytest.mark.parametrize("unit", list(UNITS))
def test_a_prediction_lies_on_its_scan_for_readers_that_know_units_and_for_others(
    tmp_path: Path, unit: str, forms: str
) -> None:
    path = save(tmp_path / "scan.nii.gz", AFFINE, unit, forms)
    volume = read_volume([path])
    write_label_image(tmp_path / "out.nii.gz", volume.array[0].astype(np.uint8), volume.geometry, volume.header)
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").affine, nib.load(path).affine)
    np.testing.assert_array_equal(itk_affine(tmp_path / "out.nii.gz"), itk_affine(path))
    assert nib.load(tmp_path / "out.nii.gz").header.get_xyzt_units() == (unit, "sec")
    np.testing.assert_array_equal(nib.load(tmp_path / "out.nii.gz").dataobj, nib.load(path).dataobj)


def test_one_grid_in_two_units(toy: Any, tmp_path: Path) -> None:
    in_metres = AFFINE.copy()
    in_metres[:3] /= 1000
    first, second = save(tmp_path / "mm.nii.gz", AFFINE, "mm"), save(tmp_path / "m.nii.gz", in_metres, "meter")
    assert grid_problems("case", first, second) == []
    assert len(grid_problems("case", first, save(tmp_path / "wrong.nii.gz", in_metres, "mm"))) == 1


def test_a_repaired_label_counts_in_its_images_unit(toy: Any, tmp_path: Path) -> None:
    in_metres = AFFINE.copy()
    in_metres[:3] /= 1000
    save(toy.image("a"), in_metres, "meter")
    moved = AFFINE.copy()
    moved[0, 3] += 1
    save(toy.label("a"), moved, "mm")
    (repair,) = repair_labels(toy.check().facts, toy.folder, tmp_path / "fixed")
    assert repair.copy is not None and grid_problems("a", repair.copy, toy.image("a")) == []
    assert nib.load(repair.copy).header.get_xyzt_units() == ("meter", "sec")


def test_voxel_sizes_that_cannot_be_are_told_by_check_and_prepare(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in "abcdef":
        header: Any = nib.load(toy.image(case)).header
        for path in (toy.image(case), toy.label(case)):
            image: Any = nib.load(path)
            image.header.set_xyzt_units("meter")
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj), header.get_best_affine(), image.header), path)
    text = (
        "voxels of 1000 x 1000 x 3000 mm (its header counts in metres), 0.01 to 100 mm expected: is its header right? "
        "(the largest of 6 cases: a, b, c, d, e ..)"
    )
    assert text in [problem for _, severity, problem, _ in toy.problems() if severity == "warning"]
    arguments = ["data=msd", "data.name=toy", f"paths.data={toy.folder.parent}"]
    assert check([*arguments, "workers=0"]) == 0
    assert text in capsys.readouterr().out
    prepare([*arguments, f"paths.prepared={tmp_path}/prepared", "data.prepare_workers=0"])
    assert text in capsys.readouterr().out


def test_a_few_cases_have_a_line_each_and_name_what_is_odd(tmp_path: Path) -> None:
    thin, flat = AFFINE.copy(), AFFINE.copy()
    thin[0, 0], flat[1, 2] = -0.009, 101
    apart = AFFINE.copy()
    apart[0, 3] += 12
    scans = {
        "fine": save(tmp_path / "fine.nii.gz", AFFINE, "mm"),
        "thin": save(tmp_path / "thin.nii.gz", thin, "unknown"),
        "flat": save(tmp_path / "flat.nii.gz", flat, "mm"),
        "two": save(tmp_path / "two.nii.gz", AFFINE, "mm", qform=apart),
        "one": save(tmp_path / "one.nii.gz", AFFINE, "mm", "s", qform=apart),  # the qform does not count
    }
    (tmp_path / "broken.nii.gz").write_text("no scan")
    cases = [Case(name, (path,), None) for name, path in scans.items()]
    found = scan_warnings([*cases, Case("broken", (tmp_path / "broken.nii.gz",), None)])
    expected = "(its header counts in mm), 0.01 to 100 mm expected: is its header right?"
    assert [(one.case, one.severity, one.problem, one.file) for one in found] == [
        (
            "thin",
            "warning",
            f"voxels of 0.009 x 0.8 x 2.5 mm {expected}",
            str(scans["thin"]),
        ),
        ("flat", "warning", f"voxels of 0.9 x 0.8 x 101 mm {expected}", str(scans["flat"])),
        (
            "two",
            "warning",
            "sform and qform lead to places up to 12 mm (15 of the smallest voxel size) apart; the sform is used",
            str(scans["two"]),
        ),
    ]


def test_many_cases_have_one_line_that_names_the_worst(tmp_path: Path) -> None:
    cases = []
    for number, size in enumerate((150, 700, 200, 300)):
        affine = AFFINE.copy()
        affine[1, 2] = size
        cases.append(Case(str(number), (save(tmp_path / f"{number}.nii.gz", affine, "mm"),), None))
    (warning,) = scan_warnings(cases)
    assert warning.file == str(cases[1].images[0]) and warning.problem.startswith("voxels of 0.9 x 0.8 x 700 mm ")
    assert warning.problem.endswith("(the largest of 4 cases: 0, 1, 2, 3)")


def test_a_qform_that_is_no_rotation_is_told_where_it_counts(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", AFFINE, "mm")
    image: Any = nib.load(path)
    image.header["quatern_b"] = 1.5
    with path.open("r+b") as stream:
        stream.write(image.header.binaryblock)
    (warning,) = scan_warnings([Case("a", (path,), None)])
    assert warning.problem == "sform and qform disagree: the qform is no rotation; the sform is used"
