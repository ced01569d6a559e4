"""An sform that contradicts pixdim, as in the files of ACDC: read as ITK reads it, told, and kept in results."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from e2enet.data.formats.forms import header_affine, spacing_conflict
from e2enet.data.formats.grid import grid_offset
from e2enet.data.formats.naming import Case
from e2enet.data.formats.opening import open_image
from e2enet.data.formats.remarks import scan_warnings
from e2enet.data.formats.volume import read_geometry, read_volume, write_image, write_label_image
from e2enet.data.synthetic.lookalikes import write_acdc
from e2enet.evaluation import score_folder
from tests.data.test_units import itk_affine

PIXDIM = (1.3158, 1.3158, 10.0)
SHAPE = (6, 7, 4)
TOLD = "voxels of 1 x 1 x 1 mm by the sform and of 1.316 x 1.316 x 10 mm by pixdim; those of pixdim are used, as in ITK"


@pytest.fixture(autouse=True)
def quiet_itk() -> Any:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it warns of these very headers
    yield
    sitk.ProcessObject.SetGlobalWarningDisplay(True)


def turned(degrees: float, spacing: tuple[float, float, float], origin: tuple[float, float, float]) -> np.ndarray:
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.array([[-cosine, -sine, 0], [sine, -cosine, 0], [0, 0, 1]]) * spacing
    return nib.affines.from_matvec(matrix, origin)


def save(path: Path, sform: np.ndarray, codes: tuple[int, int], unit: str = "mm", voxels: Any = None) -> Path:
    """Save a label whose qform and pixdim say PIXDIM; `codes` are those of sform and qform."""
    voxels = np.zeros(SHAPE, np.uint8) if voxels is None else voxels
    header = nib.Nifti1Header()
    header.set_xyzt_units(unit, "sec")
    header.set_qform(turned(20, PIXDIM, (5, 6, 7)), codes[1])
    header.set_sform(sform, codes[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, None, header), path)
    return path


@pytest.mark.parametrize("unit", ["mm", "meter"])
@pytest.mark.parametrize("qform", [0, 1, 2])
@pytest.mark.parametrize("sform", [1, 2, 4])
def test_a_contradicted_sform_is_read_as_itk_reads_it(tmp_path: Path, sform: int, qform: int, unit: str) -> None:
    path = save(tmp_path / "a.nii.gz", turned(-30, (1, 1, 1), (15, 16, 17)), (sform, qform), unit)
    image = open_image(path)
    np.testing.assert_allclose(image.affine, itk_affine(path), rtol=1e-5, atol=1e-4)
    factor = 1000.0 if unit == "meter" else 1.0
    assert read_geometry(path, 2).spacing == pytest.approx([size * factor for size in (10, 1.3158, 1.3158)])
    conflict = spacing_conflict(image.header)
    assert conflict is not None and conflict.sform == pytest.approx((factor,) * 3)
    assert conflict.pixdim == pytest.approx([size * factor for size in PIXDIM]) and conflict.factor == pytest.approx(10)


def test_a_skewed_sform_gives_way_to_the_qform_alone(tmp_path: Path) -> None:
    skewed = turned(-30, (1, 1, 1), (15, 16, 17))
    skewed[0, 1] += 0.2
    path = save(tmp_path / "a.nii", skewed, (1, 1))
    np.testing.assert_allclose(open_image(path).affine, itk_affine(path), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(open_image(path).affine, turned(20, PIXDIM, (5, 6, 7)), rtol=1e-5, atol=1e-4)


def test_headers_that_agree_are_read_as_before(tmp_path: Path) -> None:
    for factor, agrees in ((1.0, True), (1.009, True), (1.011, False)):
        sform = turned(-30, (1.3158, 1.3158, 10 * factor), (15, 16, 17))
        path = save(tmp_path / "a.nii", sform, (2, 1))
        assert (spacing_conflict(open_image(path).header) is None) is agrees
        found = open_image(path).affine
        assert np.array_equal(found, nib.load(path).affine) is agrees
        assert (scan_warnings([Case("a", (path,))])[0].problem.startswith("sform and qform lead")) is agrees


@pytest.mark.parametrize("size", [0.0, -1.3158, np.nan])
def test_voxel_sizes_that_are_missing_come_from_the_sform(tmp_path: Path, size: float) -> None:
    sform = turned(-30, (2, 2, 5), (15, 16, 17))
    path = save(tmp_path / "a.nii.gz", sform, (2, 0))
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[80:84] = np.float32(size).tobytes()  # pixdim[1]
    path.write_bytes(gzip.compress(bytes(content)))
    volume = read_volume([path], 2)
    np.testing.assert_allclose(volume.geometry.affine, sform, rtol=1e-6)
    assert scan_warnings([Case("a", (path,))]) == []
    write_label_image(tmp_path / "out.nii.gz", np.ones((4, 6, 7), np.uint8), volume.geometry, volume.header)
    np.testing.assert_allclose(open_image(tmp_path / "out.nii.gz").affine, sform, rtol=1e-6)
    if np.isfinite(size):
        np.testing.assert_allclose(nib.load(tmp_path / "out.nii.gz").header["pixdim"][1:4], (2, 2, 5), rtol=1e-6)


@pytest.mark.parametrize("codes", [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_a_result_keeps_every_form_so_that_it_lies_on_the_scan_in_any_viewer(
    tmp_path: Path, codes: tuple[int, int]
) -> None:
    scan = save(tmp_path / "scan.nii.gz", turned(0, (1, 1, 1), (0, 0, 0)), codes)
    volume = read_volume([scan], 2)
    labels, probabilities = np.ones((4, 7, 6), np.uint8), np.ones((2, *volume.array.shape[1:]))
    write_label_image(tmp_path / "a.nii.gz", labels.reshape(volume.array.shape[1:]), volume.geometry, volume.header)
    write_image(tmp_path / "b.nii.gz", probabilities, volume.geometry, volume.header)
    theirs = nib.load(scan)
    for name in ("a", "b"):
        path = tmp_path / f"{name}.nii.gz"
        ours = nib.load(path)
        fields = ("sform_code", "qform_code", "quatern_d", "qoffset_x", "srow_x", "srow_y", "srow_z", "xyzt_units")
        for field in fields:
            np.testing.assert_array_equal(ours.header[field], theirs.header[field])
        np.testing.assert_array_equal(ours.header["pixdim"][:4], theirs.header["pixdim"][:4])
        np.testing.assert_array_equal(ours.affine, theirs.affine)  # for nibabel, as in many viewers
        assert grid_offset(open_image(path).affine, open_image(scan).affine, SHAPE).mm == 0
    np.testing.assert_allclose(itk_affine(tmp_path / "a.nii.gz"), itk_affine(scan), atol=1e-6)
    np.testing.assert_allclose(header_affine(volume.header), volume.geometry.affine)


def test_check_predict_and_evaluate_tell_it_once(toy: Any, tmp_path: Path) -> None:
    sform = turned(0, (1, 1, 1), (0, 0, 0))
    for path in (toy.image("a"), toy.label("a")):
        values = np.asarray(nib.load(path).dataobj)
        save(path, sform, (2, 1), voxels=values)
    assert [(case, text) for case, _, text, file in toy.problems() if "pixdim" in text] == [("a", TOLD)]
    (warning,) = scan_warnings([Case("a", (toy.image("a"),))])
    assert str(warning) == f"case a: {toy.image('a')}: {TOLD}"
    label = toy.label("a")
    for folder in ("predictions", "labels"):
        save(tmp_path / folder / "a.nii.gz", sform, (2, 1), voxels=np.asarray(nib.load(label).dataobj))
    scores, _, warnings = score_folder(tmp_path / "predictions", tmp_path / "labels", names={1: "x", 2: "y"})
    assert warnings == [f"case a: {tmp_path}/labels/a.nii.gz: {TOLD}"]
    assert [score.dice for score in scores] == [1, 1]


def test_distances_are_in_the_mm_of_pixdim(tmp_path: Path) -> None:
    sform = turned(0, (1, 1, 1), (0, 0, 0))
    reference, moved = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    reference[2, 2, 1], moved[2, 2, 2] = 1, 1
    save(tmp_path / "labels" / "a.nii.gz", sform, (2, 1), voxels=reference)
    # A program on ITK writes one spacing in all forms.
    image = sitk.ReadImage(str(tmp_path / "labels" / "a.nii.gz"))
    written = sitk.GetImageFromArray(moved.T)
    written.CopyInformation(image)
    (tmp_path / "predictions").mkdir()
    sitk.WriteImage(written, str(tmp_path / "predictions" / "a.nii.gz"))
    scores, _, _ = score_folder(tmp_path / "predictions", tmp_path / "labels", names={1: "x"})
    assert scores[0].hd95 == pytest.approx(10)
    for pair in ("predictions", "labels"):  # as a header and a voxel file, which nibabel reads
        image = nib.load(tmp_path / pair / "a.nii.gz")
        (tmp_path / "two" / pair).mkdir(parents=True)
        nib.save(nib.Nifti1Pair(np.asarray(image.dataobj), None, image.header), tmp_path / "two" / pair / "a.hdr")
    scores, _, _ = score_folder(tmp_path / "two" / "predictions", tmp_path / "two" / "labels", names={1: "x"})
    assert scores[0].hd95 == pytest.approx(10)


def test_the_look_alike_of_acdc_has_such_headers(tmp_path: Path) -> None:
    folder = write_acdc(tmp_path / "ACDC", 1)
    files = sorted((folder / "database").rglob("*frame*.nii.gz"))
    assert len(files) == 8
    for path in files:
        assert nib.load(path).affine[:3, :3].tolist() == [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]
        assert read_geometry(path).spacing == pytest.approx((8, 1.56, 1.56), rel=1e-6)
        np.testing.assert_allclose(open_image(path).affine, itk_affine(path), atol=1e-5)
    (warning,) = scan_warnings([Case(path.name, (path,)) for path in files])
    assert "voxels of 1 x 1 x 1 mm by the sform and of 1.56 x 1.56 x 8 mm" in warning.problem
    assert "of 8 cases" in warning.problem
