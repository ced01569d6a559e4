"""The NumPy resampling beside an ONNX model, against SciPy and this package's own."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from e2enet.data.formats.grid import Unit
from e2enet.data.formats.volume import read_volume
from e2enet.data.planning.plan import Plan, resampled_shape
from e2enet.data.preparation.preprocess import normalise, preprocess
from e2enet.data.preparation.resample import nearest_indices, resample_image, separate_axis
from e2enet.export import scan_grid
from e2enet.inference import windows
from e2enet.inference.largest_component import keep_largest

MODEL: dict = {
    "channels": ["MRI"],
    "file_axes": False,
    "spacing_unit": None,
    "plan": {"depth_axis": 2},
    "labels": {"0": "background", "1": "liver"},
    "regions": {},
    "regions_class_order": [],
    "keep_largest": [],
}
SIZES = [(5, 8), (8, 5), (1, 3), (2, 7), (30, 18), (40, 57)]


def save_nifti(path: Path, values: np.ndarray, affine: np.ndarray | None, unit: str = "mm", code: int = 1) -> None:
    """Write a scan with both forms."""
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    image.header.set_xyzt_units(unit)
    nib.save(image, path)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_splines_are_scipys(old: int, new: int) -> None:
    expected = ndimage.zoom(np.eye(old), (new / old, 1), order=3, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(scan_grid.axis_matrix(old, new, 3), expected, atol=3e-8)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_linear_is_torchs_and_nearest_is_ours(old: int, new: int) -> None:
    unit = torch.eye(old, dtype=torch.float64)
    expected = torch.nn.functional.interpolate(unit[None], size=new, mode="linear", align_corners=False)[0].T
    np.testing.assert_allclose(scan_grid.axis_matrix(old, new, 1), expected, atol=1e-12)
    np.testing.assert_array_equal(scan_grid.axis_matrix(old, new, 0), np.eye(old)[nearest_indices(old, new)])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((1.0, 1.0, 1.0), (1.5, 1.2, 0.7)),
        ((5.0, 1.0, 1.0), (2.0, 1.5, 1.5)),
        ((1.0, 1.0, 1.0), (1.0, 4.0, 1.0)),
        ((3.00000007, 1.00000003, 1.0), (1.0, 1.0, 1.0)),
        ((0.2, 1.00000006, 1.0), (0.3, 0.7, 0.7)),
    ],
)
def test_volumes_are_resampled_as_in_preparation(old: tuple[float, ...], new: tuple[float, ...]) -> None:
    volume = np.random.default_rng(0).normal(size=(9, 12, 10)).astype(np.float32)
    shape = [max(1, round(o / n * size)) for o, n, size in zip(old, new, volume.shape, strict=True)]
    expected = resample_image(volume, shape, separate_axis(old, new))
    found = scan_grid.resample(volume, shape, np.array(old), np.array(new), 3)
    np.testing.assert_allclose(np.clip(found, volume.min(), volume.max()), expected, atol=2e-6)
    assert expected.std() > 0.3


@pytest.mark.parametrize(("thick", "depth"), [(3.0, 18), (1.5, 8)])
def test_a_turned_scan_is_prepared_as_in_preparation(thick: float, depth: int, tmp_path: Path) -> None:
    """Its affine is rounded to float32. Slices of 3 mm are not more than three times coarser than 1 mm for that.

    Of five slices of 1.5 mm, 7.5 of 1 mm are left, which round to 8.
    """
    random = np.random.default_rng(0)
    values = random.normal(5, 1, size=(9, 8, 6 if thick == 3 else 5)).astype(np.float32)
    plan = Plan(2, (1.0, 1.0, 1.0), (8, 8, 8), ((2, 2, 2),), 2, ({"scheme": "none"},), (8, 8, 8))
    model = {**MODEL, "plan": plan.to_dict()}
    file, spacings = tmp_path / "scan.nii.gz", set()
    for _ in range(12):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("xyz", random.uniform(-20, 20, 3), degrees=True).as_matrix()
        affine[:3, 2] *= thick
        save_nifti(file, values, affine)
        volume, scan = read_volume([file], 2), scan_grid.read_scan([str(file)], model)
        expected = preprocess(volume, plan).image
        assert expected.shape == (1, depth, 9, 8)
        np.testing.assert_allclose(scan_grid.prepare(scan, model), expected, atol=2e-5)
        spacings.add(volume.spacing[0] > thick * volume.spacing[1])
    assert spacings == {True, False}


def test_half_a_voxel_rounds_to_even_whatever_headers_round() -> None:
    array = np.ones((1, 5, 3, 4), np.float32)
    model = {"plan": {"spacing": [1.0, 1.0, 1.0], "normalisation": [{"scheme": "none"}]}}
    for noise in (-7e-8, 0.0, 7e-8):
        spacing = np.array([1.5 + noise, 1.5 + noise, 0.1])
        scan = scan_grid.Scan(array, spacing, (slice(5), slice(3), slice(4)), [2, 0, 1], None, None)
        found = scan_grid.prepare(scan, model).shape
        assert found == (1, 8, 4, 1) == (1, *resampled_shape(array.shape[1:], spacing.tolist(), (1, 1, 1)))


@pytest.mark.parametrize("shape", [(7, 20, 9), (10, 8, 33)])
def test_windows_are_those_of_predict(shape: tuple[int, ...]) -> None:
    patch, step = (8, 8, 12), 0.5
    image = np.random.default_rng(4).normal(size=(2, *shape)).astype(np.float32)
    padded, inside = scan_grid.pad_to_patch(image, patch)
    ours, place = windows.pad_to_patch(torch.from_numpy(image), patch)
    np.testing.assert_array_equal(padded, ours)
    assert inside == (slice(None), *place) and np.array_equal(padded[inside], image)
    grid = windows.WindowGrid.over(shape, patch, step)
    expected = [(slice(None), *grid.box(corner)) for first in grid.starts[0] for corner in grid.layer(first)]
    assert list(scan_grid.windows(padded.shape[1:], patch, step)) == expected and len(expected) > 3
    np.testing.assert_allclose(scan_grid.gaussian_weights(patch), windows.gaussian_weights(patch), rtol=1e-6)


def test_mirrorings_are_those_of_predict() -> None:
    for axes in [(), (1,), (0, 2), (0, 1, 2)]:
        expected = {tuple(axis + 1 for axis in subset) for subset in windows.mirror_subsets(axes)}
        found = list(scan_grid.mirrorings(axes))
        assert set(found) == expected and len(found) == len(expected) == 2 ** len(axes)


@pytest.mark.parametrize(
    "way",
    [
        {"scheme": "ct", "lower": -1.0, "upper": 1.5, "mean": 0.2, "std": 0.8},
        {"scheme": "ct", "lower": 3.0, "upper": 3.0, "mean": 3.0, "std": 0.0},
        {"scheme": "zscore", "nonzero": False},
        {"scheme": "zscore", "nonzero": True},
        {"scheme": "none"},
    ],
)
def test_channels_are_normalised_as_in_preparation(way: dict) -> None:
    channel = np.random.default_rng(1).normal(3, 2, size=(4, 5, 6)).astype(np.float32)
    inside = np.zeros(channel.shape, dtype=bool)
    inside[1:3, 1:4, 2:5] = True
    expected = channel.copy()
    normalise(expected, way, inside)
    np.testing.assert_allclose(scan_grid.normalise(channel, way, inside), expected, atol=1e-6)
    assert np.isfinite(expected).all()


def test_largest_components_are_ours() -> None:
    labels = (np.random.default_rng(2).random((8, 9, 7)) < 0.08).astype(np.uint8)
    labels[labels > 0] = np.random.default_rng(3).integers(1, 4, size=int(labels.sum()))
    classes = [[1], [2, 3], [5]]
    expected = keep_largest(labels, [tuple(united) for united in classes])
    np.testing.assert_array_equal(scan_grid.keep_largest(labels, classes), expected)
    assert 0 < (expected > 0).sum() < (labels > 0).sum()


@pytest.mark.parametrize(
    ("value", "origin", "message"),
    [
        (1.0, 5.0, "differ in their grids; channels on one grid expected"),
        (0.0, 0.0, "finite values expected, of which some are not zero"),
        (float("nan"), 0.0, "finite values expected"),
    ],
)
def test_scans_that_cannot_be_used_are_told(value: float, origin: float, message: str, tmp_path: Path) -> None:
    files = [str(tmp_path / f"{channel}.nii.gz") for channel in range(2)]
    for channel, file in enumerate(files):
        image = sitk.GetImageFromArray(np.full((3, 4, 5), value, np.float32))
        image.SetOrigin((0.0, 0.0, channel * origin))
        sitk.WriteImage(image, file)
    with pytest.raises(SystemExit, match=message):
        scan_grid.read_scan(files, {**MODEL, "channels": ["T1", "T2"]})


def restored_affine(scan: scan_grid.Scan, model: dict, path: Path) -> np.ndarray:
    """Write an empty label image of a scan, and return its affine as nibabel reads it."""
    spacing = {**model["plan"], "spacing": scan.spacing.tolist()}
    odds = np.zeros((2, *(part.stop - part.start for part in scan.crop)), np.float32)
    sitk.WriteImage(scan_grid.restore(odds, scan, {**model, "plan": spacing}), path)
    return nib.load(path).affine


@pytest.mark.parametrize("header", ["meter", "mm", "micron", "unknown"])
@pytest.mark.parametrize("unit", [None, "m", "mm", "um"])
def test_lengths_count_in_the_unit_of_the_training_data(unit: Unit | None, header: str, tmp_path: Path) -> None:
    """ITK reads in the header's unit, which may be wrong."""
    affine = np.diag([0.8, -0.9, 2.5, 1.0])
    affine[:3, 3] = (5, -6, 70)
    save_nifti(tmp_path / "scan.nii.gz", np.ones((3, 4, 5), np.float32), affine, header)
    expected = read_volume([tmp_path / "scan.nii.gz"], 2, unit)
    model = {**MODEL, "spacing_unit": unit}
    scan = scan_grid.read_scan([str(tmp_path / "scan.nii.gz")], model)
    np.testing.assert_allclose(scan.spacing, expected.spacing, rtol=1e-6)
    found = restored_affine(scan, model, tmp_path / "label.nii.gz")
    np.testing.assert_allclose(found, expected.geometry.affine, rtol=1e-6)


def test_a_format_without_units_counts_in_that_of_the_training_data(tmp_path: Path) -> None:
    """What ITK keeps of a NIfTI header when it converts the file says nothing about lengths in the new one."""
    image = sitk.GetImageFromArray(np.ones((3, 4, 5), np.float32))
    for key in ("sform_code", "qform_code", "xyzt_units"):
        image.SetMetaData(key, {"xyzt_units": "1"}.get(key, "0"))
    sitk.WriteImage(image, tmp_path / "scan.nrrd")
    for unit, expected in ((None, 1.0), ("mm", 1.0), ("um", 1e-3)):
        scan = scan_grid.read_scan([str(tmp_path / "scan.nrrd")], {**MODEL, "spacing_unit": unit})
        assert scan.spacing.tolist() == [expected] * 3
        assert scan.image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1) and scan.image.GetOrigin() == (0, 0, 0)
        assert read_volume([tmp_path / "scan.nrrd"], 2, unit).spacing == pytest.approx([expected] * 3)


def test_a_header_without_orientation_is_read_as_nibabel_does(tmp_path: Path) -> None:
    """ITK's directions differ: its labels would be those of a mirrored scan."""
    values = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    image = nib.Nifti1Image(values, None)
    image.header.set_zooms((0.8, 0.9, 2.5))
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "scan.nii")
    header = nib.load(tmp_path / "scan.nii").header
    assert header["sform_code"] == header["qform_code"] == 0
    expected = read_volume([tmp_path / "scan.nii"], 2)
    scan = scan_grid.read_scan([str(tmp_path / "scan.nii")], MODEL)
    np.testing.assert_array_equal(scan.array, expected.array)
    np.testing.assert_allclose(
        restored_affine(scan, MODEL, tmp_path / "label.nii"), expected.geometry.affine, rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (3, 4, 5, 1, 2), (3, 4, 5, 2, 1)])
def test_channels_of_one_file(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    save_nifti(tmp_path / "scan.nii", values, np.diag([-1.0, 1.0, 2.0, 1.0]))
    scan = scan_grid.read_scan([str(tmp_path / "scan.nii")], {**MODEL, "channels": ["T1", "T2"]})
    np.testing.assert_array_equal(scan.array, read_volume([tmp_path / "scan.nii"], 2).array)
    assert scan.array.shape == (2, 5, 3, 4)


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_channels_as_components_of_voxels(ending: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 4, 3, 2)).astype(np.float32)
    file = tmp_path / f"scan{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=True), file)
    scan = scan_grid.read_scan([str(file)], {**MODEL, "channels": ["T1", "T2"]})
    np.testing.assert_array_equal(scan.array, read_volume([file], 2).array)
    with pytest.raises(SystemExit, match=r"2 channels, 1 expected: \['MRI'\]"):
        scan_grid.read_scan([str(file)], MODEL)


def test_a_file_per_channel_has_one(tmp_path: Path) -> None:
    """A fourth axis of one is as good as none. Of a file with two channels none is left out."""
    random, files = np.random.default_rng(0), [str(tmp_path / f"{index}.nii") for index in range(2)]
    model = {**MODEL, "channels": ["T1", "T2"]}
    for file in files:
        save_nifti(Path(file), random.normal(size=(3, 4, 5, 1)).astype(np.float32), np.eye(4))
    np.testing.assert_array_equal(scan_grid.read_scan(files, model).array, read_volume(files, 2).array)
    save_nifti(Path(files[0]), random.normal(size=(3, 4, 5, 2)).astype(np.float32), np.eye(4))
    with pytest.raises(SystemExit, match=r"3 channels, 2 expected: \['T1', 'T2'\]"):
        scan_grid.read_scan(files, model)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5, 2, 3)])
def test_shapes_that_are_no_scan_are_told(shape: tuple[int, ...], tmp_path: Path) -> None:
    save_nifti(tmp_path / "scan.nii", np.ones(shape, np.float32), np.eye(4))
    with pytest.raises(SystemExit) as stop:
        scan_grid.read_scan([str(tmp_path / "scan.nii")], MODEL)
    assert stop.value.code == f"{tmp_path}/scan.nii: shape {shape}; a 3D image, or a 4D one with channels last expected"
