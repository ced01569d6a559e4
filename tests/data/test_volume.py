"""Geometry: every orientation survives the way to the frame and back, and broken files are reported by name."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.grid import choose_depth_axis, require_same_grid
from e2enet.data.formats.volume import (
    read_geometry,
    read_label,
    read_ras_spacing,
    read_volume,
    to_native,
    write_image,
    write_label_image,
)

SHAPE = (4, 5, 6)
RNG = np.random.default_rng(0)


def load(path: Path) -> Any:
    """nibabel declares a base class without voxels."""
    return nib.load(path)


def save(path: Path, data: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def affines() -> list[np.ndarray]:
    """Return affines with all 48 axis orders and directions, spacing 1, 2, 3 mm along RAS, and an oblique one."""
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.eye(4)
            affine[:3, :3] = 0
            for axis, (ras, sign) in enumerate(zip(order, signs, strict=True)):
                affine[ras, axis] = sign * (ras + 1)
            affine[:3, 3] = (10, -20, 30)
            found.append(affine)
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    oblique = np.eye(4)
    oblique[:3, :3] = turn @ np.diag((-1.0, 2.0, 3.0))
    return [*found, oblique]


@pytest.mark.parametrize("affine", affines())
@pytest.mark.parametrize("depth_axis", [0, 1, 2])
def test_round_trip_is_exact(tmp_path: Path, affine: np.ndarray, depth_axis: int) -> None:
    data = RNG.integers(0, 9, SHAPE, dtype=np.uint8)
    path = save(tmp_path / "a.nii", data, affine)
    label, geometry = read_label(path, depth_axis)
    assert label.shape == geometry.frame_shape
    np.testing.assert_array_equal(to_native(label, geometry), data)
    np.testing.assert_array_equal(to_native(np.stack([label, label + 1]), geometry)[1], data + 1)
    write_label_image(tmp_path / "b.nii.gz", label, geometry, load(path).header)
    written = load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), data)
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)


def test_frame_is_ras_with_depth_first(tmp_path: Path) -> None:
    # Native axes: x towards Left, y towards Posterior, z towards Inferior.
    data = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    path = save(tmp_path / "lpi.nii", data, np.diag((-1.0, -2.0, -3.0, 1.0)))
    volume = read_volume([path], depth_axis=2)
    assert volume.spacing == (3.0, 1.0, 2.0)
    expected = data[::-1, ::-1, ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(volume.array[0], expected)
    assert volume.array.dtype == np.float32
    assert read_ras_spacing(path) == (1.0, 2.0, 3.0)
    assert read_geometry(path).depth_axis == 2


@pytest.mark.parametrize(
    ("spacings", "axis"),
    [
        ([(1, 1, 1)], 2),
        ([(1, 1, 0.995)], 2),  # within 1 %: a tie, which the S axis wins
        ([(1, 1, 0.9)], 1),
        ([(1, 3, 1)], 1),
        ([(5, 1, 1)], 0),
        ([(1, 1, 1), (1, 1, 1), (9, 1, 1)], 2),  # the median decides, not a single outlier
    ],
)
def test_depth_axis_is_that_of_largest_median_spacing(spacings: list, axis: int) -> None:
    assert choose_depth_axis(spacings) == axis


def test_channels_from_files_and_from_one_4d_file_agree(tmp_path: Path) -> None:
    data = RNG.normal(size=(*SHAPE, 3)).astype(np.float32)
    affine = np.diag((1.0, 1.0, 4.0, 1.0))
    files = [save(tmp_path / f"a_{c:04d}.nii.gz", data[..., c], affine) for c in range(3)]
    whole = save(tmp_path / "a.nii.gz", data, affine)
    np.testing.assert_array_equal(read_volume(files).array, read_volume([whole]).array)
    assert read_volume([whole]).array.shape == (3, 6, 4, 5)


def test_probabilities_are_written_with_classes_last(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.zeros(SHAPE, np.float32), np.diag((-1.0, 1.0, 4.0, 1.0)))
    volume = read_volume([path])
    probabilities = RNG.random((2, *volume.geometry.frame_shape)).astype(np.float32)
    write_image(tmp_path / "p.nii.gz", probabilities, volume.geometry, volume.header)
    written = load(tmp_path / "p.nii.gz")
    assert written.shape == (*SHAPE, 2) and written.get_data_dtype() == np.float32
    np.testing.assert_array_equal(written.get_fdata()[..., 1], to_native(probabilities[1], volume.geometry))


def test_written_labels_keep_units_and_codes_but_not_the_scaling(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4))
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(2.0, -1024.0)
    image.set_sform(np.eye(4), 2)
    nib.save(image, tmp_path / "ct.nii.gz")
    volume = read_volume([tmp_path / "ct.nii.gz"])
    label = np.full(volume.geometry.frame_shape, 3, np.uint8)
    write_label_image(tmp_path / "out.nii.gz", label, volume.geometry, volume.header)
    header = load(tmp_path / "out.nii.gz").header
    assert header.get_xyzt_units() == ("mm", "sec") and int(header["sform_code"]) == 2
    assert set(np.asarray(load(tmp_path / "out.nii.gz").dataobj).ravel().tolist()) == {3}


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_what_describes_the_scan_is_not_written_into_results(tmp_path: Path, kind: type) -> None:
    image = kind(np.zeros(SHAPE, np.int16), np.eye(4))
    for name in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        if name in image.header:
            image.header[name] = b"Doe^Jane"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe, born 1970"))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "scan.nii")
    assert (tmp_path / "scan.nii").read_bytes().count(b"Doe") >= 4
    volume = read_volume([tmp_path / "scan.nii"])
    label = np.full(volume.geometry.frame_shape, 3, np.uint8)
    write_label_image(tmp_path / "label.nii", label, volume.geometry, volume.header)
    write_image(tmp_path / "image.nii", label.astype(np.float32), volume.geometry, volume.header)
    for name in ("label.nii", "image.nii"):
        assert b"Doe" not in (tmp_path / name).read_bytes()
        result = load(tmp_path / name)
        assert isinstance(result, kind) and not result.header.extensions
        assert result.header.get_xyzt_units() == ("mm", "sec") and np.asarray(result.dataobj).min() == 3
    assert volume.header.extensions  # the scan's header is not changed


def test_labels_above_255_are_int16(tmp_path: Path) -> None:
    data = np.zeros(SHAPE, np.int32)
    data[0, 0, 0] = 300
    label, geometry = read_label(save(tmp_path / "a.nii", data, np.eye(4)), 2)
    assert label.dtype == np.int16 and label.max() == 300
    write_label_image(tmp_path / "b.nii", label, geometry)
    np.testing.assert_array_equal(np.asarray(load(tmp_path / "b.nii").dataobj), data)


def test_the_same_grid_is_one_up_to_a_tenth_of_the_smallest_voxel_size(tmp_path: Path) -> None:
    first = read_geometry(save(tmp_path / "a.nii", np.zeros(SHAPE, np.uint8), np.eye(4)), 2)
    nearly, moved = np.eye(4), np.eye(4)
    nearly[0, 3], moved[0, 3] = 0.1, 0.11
    require_same_grid(first, read_geometry(save(tmp_path / "b.nii", np.zeros(SHAPE, np.uint8), nearly), 2), "x")
    with pytest.raises(InputError, match=r"x: the affines differ by up to 0\.11 mm, at most 0\.1 mm"):
        require_same_grid(first, read_geometry(save(tmp_path / "c.nii", np.zeros(SHAPE, np.uint8), moved), 2), "x")
    with pytest.raises(InputError, match=r"shapes \(4, 5, 6\) and \(4, 5, 7\)"):
        other = save(tmp_path / "d.nii", np.zeros((4, 5, 7), np.uint8), np.eye(4))
        require_same_grid(first, read_geometry(other, 2), "x")


def test_broken_files_are_named(tmp_path: Path) -> None:
    nan = np.zeros(SHAPE, np.float32)
    nan[0, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"nan\.nii: 1 voxels are NaN"):
        read_volume([save(tmp_path / "nan.nii", nan, np.eye(4))])
    with pytest.raises(InputError, match=r"none\.nii\.gz: no such file"):
        read_volume([tmp_path / "none.nii.gz"])
    (tmp_path / "text.nii.gz").write_text("not an image")
    with pytest.raises(InputError, match=r"text\.nii\.gz: cannot be read"):
        read_volume([tmp_path / "text.nii.gz"])
    whole = save(tmp_path / "cut.nii.gz", RNG.normal(size=(20, 20, 20)).astype(np.float32), np.eye(4))
    whole.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"cut\.nii\.gz: the voxels cannot be read"):
        read_volume([whole])
    with pytest.raises(InputError, match=r"flat\.nii: shape \(4, 5\)"):
        read_volume([save(tmp_path / "flat.nii", np.zeros((4, 5), np.float32), np.eye(4))])


def test_a_singular_affine_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.float32), np.eye(4))
    image.header["sform_code"] = 1
    image.header["srow_z"] = 0
    image.header["qform_code"] = 0
    with (tmp_path / "a.nii").open("wb") as stream:
        image.header["magic"] = b"n+1"
        image.header["vox_offset"] = 352
        stream.write(image.header.binaryblock + b"\0" * 4 + bytes(480))
    with pytest.raises(InputError, match=r"a\.nii: the affine .* cannot be inverted"):
        read_volume([tmp_path / "a.nii"])


@pytest.mark.parametrize(("value", "message"), [(0.5, "value 0.5"), (-1.0, "from -1 to 0"), (1e6, "from 0 to 1e")])
def test_label_values_are_checked(tmp_path: Path, value: float, message: str) -> None:
    data = np.zeros(SHAPE, np.float32)
    data[0, 0, 0] = value
    with pytest.raises(InputError, match=message):
        read_label(save(tmp_path / "a.nii", data, np.eye(4)), 2)
