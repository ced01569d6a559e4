"""Stored voxels equal those that nibabel reads, are in memory once, and the stream is read to its end."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.stored import read_stored, read_stored_header

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "float32", "float64"])
@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 6, 3), (4, 5, 6, 1, 2)])
def test_values_are_those_of_nibabel(tmp_path: Path, ending: str, dtype: str, shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 200, shape).astype(dtype)
    header = nib.Nifti1Header(endianness=">" if dtype.startswith(">") else "<")
    path = tmp_path / f"a{ending}"
    image = nib.Nifti1Image(array, np.diag([-1.0, 2, 3, 1]), header)
    image.set_data_dtype(array.dtype)
    nib.save(image, path)
    stored = read_stored(path)
    values = np.concatenate(list(stored.values())).reshape(shape, order="F")
    np.testing.assert_array_equal(values, array)
    assert stored.header.geometry.shape == (4, 5, 6) and stored.header.geometry.spacing == (3, 1, 2)
    assert stored.header.channels == array[0, 0, 0].size and stored.header.num_bytes == array.nbytes
    assert stored.header.dtype.itemsize == array.dtype.itemsize


def test_scaling_is_applied_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = nib.Nifti1Image(RNG.integers(0, 4000, (4, 5, 6), dtype=np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, -1024)
    nib.save(image, tmp_path / "a.nii.gz")
    monkeypatch.setattr("e2enet.data.formats.stored.CHUNK_VOXELS", 7)
    stored = read_stored(tmp_path / "a.nii.gz")
    pieces = list(stored.values())
    assert (stored.header.slope, stored.header.intercept) == (0.5, -1024)
    assert [len(piece) for piece in pieces] == [7] * 17 + [1]
    expected = nib.load(tmp_path / "a.nii.gz").get_fdata()
    np.testing.assert_array_equal(np.concatenate(pieces).reshape((4, 5, 6), order="F"), expected)


def test_beyond_float32_is_infinite_as_for_training(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), 1e300), np.eye(4)), tmp_path / "a.nii")
    assert np.isinf(next(read_stored(tmp_path / "a.nii").values())).all()


def test_the_digest_is_that_of_the_voxels(tmp_path: Path) -> None:
    array = RNG.integers(0, 9, (4, 5, 6), dtype=np.int16)
    for name, affine in (("a.nii", np.eye(4)), ("b.nii.gz", np.diag([2.0, 2, 2, 1]))):
        nib.save(nib.Nifti1Image(array, affine), tmp_path / name)
    array[0, 0, 0] += 1
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "c.nii")
    first, same, other = (read_stored(tmp_path / name).digest() for name in ("a.nii", "b.nii.gz", "c.nii"))
    assert first == same and first != other


@pytest.mark.parametrize("channels", [1, 3])
def test_the_digest_is_the_same_whichever_way_axes_are_stored(tmp_path: Path, channels: int) -> None:
    array = RNG.normal(size=(4, 5, 6, channels)).astype(np.float32)
    array[0, 0, 0], array[1, 1, 1] = 0, 7

    def digest(values: np.ndarray) -> bytes:
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
        return read_stored(tmp_path / "a.nii").digest()

    orders = list(itertools.permutations(range(3)))
    turned = [
        array.transpose(*order, 3)[::x, ::y, ::z] for order in orders for x in (1, -1) for y in (1, -1) for z in (1, -1)
    ]
    assert {digest(values) for values in (*turned, np.where(array == 0, -0.0, array))} == {digest(array)}
    moved, swapped, sheared = array.copy(), array.copy(), array.copy()
    moved[0, 0, 0], moved[0, 0, 1] = array[0, 0, 1], array[0, 0, 0]
    swapped[1, 1, 1], swapped[2, 1, 1] = array[2, 1, 1], array[1, 1, 1]
    sheared[:, :, 2] = array[::-1, :, 2]
    others = [digest(values) for values in (moved, swapped, sheared, *([array[..., ::-1]] if channels > 1 else []))]
    assert len({*others, digest(array)}) == len(others) + 1


def test_a_file_too_small_for_its_header_is_told_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(RNG.normal(size=(20, 20, 20)), np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:500])
    message = r"a\.nii: .* cut off \(64000 bytes of voxels expected, the file has 500\)"
    for read in (read_stored_header, read_stored):
        with pytest.raises(InputError, match=message):
            read(path)


@pytest.mark.parametrize(("ending", "kept", "message"), [(".nii", -1, "63999 found"), (".nii.gz", -1, "ended before")])
def test_a_file_that_is_cut_off(tmp_path: Path, ending: str, kept: int, message: str) -> None:
    path = tmp_path / f"a{ending}"
    nib.save(nib.Nifti1Image(RNG.normal(size=(20, 20, 20)), np.eye(4)), path)
    path.write_bytes(path.read_bytes()[:kept])
    assert read_stored_header(path).channels == 1
    with pytest.raises(InputError, match=rf"a{ending}: the voxels cannot be read, the file may be cut off .*{message}"):
        read_stored(path)


def test_voxels_that_are_no_numbers(tmp_path: Path) -> None:
    colours = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"a\.nii: voxels of type .*numbers expected"):
        read_stored(tmp_path / "a.nii")
