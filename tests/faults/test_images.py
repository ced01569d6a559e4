"""Unusable scans of every kind are reported with file, value and expectation, before training and in prediction.

Prediction still predicts the sound scan beside the broken one, and leaves no file for the broken one.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.volume import read_volume

SHAPE = (8, 9, 6)
Spoil = Callable[[Path], Any]


def saved(array: np.ndarray, affine: np.ndarray | None = None) -> Spoil:
    """Write a file with these voxels."""
    return lambda path: nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def with_voxel(value: float, dtype: type = np.float32) -> Spoil:
    array = np.ones(SHAPE, dtype)
    array[1, 2, 3] = value
    return saved(array)


def header_changed(**fields: Any) -> Spoil:
    """Write a sound image whose header is changed without nibabel."""

    def spoil(path: Path) -> None:
        image = nib.Nifti1Image(np.ones(SHAPE, np.float32), np.eye(4))
        image.set_sform(np.eye(4), 1)
        header = image.header
        for name, value in fields.items():
            header[name] = value
        header["vox_offset"], header["magic"] = 352, fields.get("magic", b"n+1")
        path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + image.get_fdata(dtype=np.float32).tobytes()))

    return spoil


def bytes_changed(change: Callable[[bytearray], Any]) -> Spoil:
    """Write a sound file of noise and change its bytes."""

    def spoil(path: Path) -> None:
        noise = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
        nib.save(nib.Nifti1Image(noise, np.eye(4)), path)
        content = bytearray(path.read_bytes())
        path.write_bytes(change(content) or content)

    return spoil


def flip(content: bytearray, place: int) -> None:
    content[place] ^= 0xFF


def unpacked(path: Path) -> None:
    image = nib.Nifti1Image(np.ones(SHAPE, np.float32), np.eye(4))
    path.write_bytes(image.to_bytes())


SINGULAR = np.diag([1.0, 1.0, 0.0, 1.0])
PIXDIM = {"sform_code": 0, "qform_code": 0}
MANY = [1, 1, 1, 1, 1, 1, 1]
BROKEN: dict[str, tuple[Spoil, str]] = {
    "cut-off-in-its-voxels": (bytes_changed(lambda c: c[:9000]), r"may be cut off \(.*whole file expected"),
    "cut-off-in-its-checksum": (bytes_changed(lambda c: c[:-3]), r"may be cut off \(.*whole file expected"),
    "damaged-voxels": (bytes_changed(lambda c: flip(c, 9000)), r"may be cut off \(.*whole file expected"),
    "damaged-checksum": (bytes_changed(lambda c: flip(c, -6)), r"CRC check failed.*whole file expected"),
    "no-image-at-all": (
        lambda path: path.write_text("not an image"),
        "cannot be read as an image, a NIfTI file expected",
    ),
    "packed-text": (lambda path: path.write_bytes(gzip.compress(b"text " * 200)), "a NIfTI file expected"),
    "not-packed": (unpacked, "a NIfTI file expected"),
    "empty-file": (lambda path: path.write_bytes(b""), "cannot be read as an image, a NIfTI file expected"),
    "wrong-magic": (header_changed(magic=b"x+1"), "a NIfTI file expected"),
    "header-alone": (bytes_changed(lambda c: gzip.compress(gzip.decompress(c)[:340])), "a NIfTI file expected"),
    "unknown-data-type": (header_changed(datatype=999), "a NIfTI file expected"),
    "more-voxels-than-the-file-can-hold": (
        header_changed(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]),
        r"108000000000000 bytes of voxels expected, the file has \d+",
    ),
    "zero-size": (header_changed(dim=[3, 8, 0, 6, 1, 1, 1, 1]), "shape .*0.*, a 3D image or a 4D one .*expected"),
    "two-axes": (saved(np.ones((8, 9), np.float32)), r"shape \(8, 9\), a 3D image or a 4D one .*expected"),
    "two-channels": (saved(np.ones((*SHAPE, 2), np.float32)), "2 channel.*1 expected"),
    "five-axes": (saved(np.ones((*SHAPE, 2, 2), np.float32)), r"shape \(8, 9, 6, 2, 2\), a 3D image .*expected"),
    "singular-affine": (
        header_changed(srow_z=[0, 0, 0, 5]),
        "affine .* cannot be inverted, three different axes expected",
    ),
    "overflowing-affine": (header_changed(srow_y=[-3e38, 1, 0, 5]), "affine .* three different axes expected"),
    "nan-in-the-affine": (header_changed(srow_x=[np.nan, 0, 0, 5]), "affine .*nan.*three different axes expected"),
    "zero-spacing": (
        header_changed(**PIXDIM, pixdim=[1, 1, 0, 2, 0, 0, 0, 0]),
        r"voxels of \[1\.0, 0\.0, 2\.0\] mm \(pixdim\), three sizes above 0 expected",
    ),
    "negative-spacing": (
        header_changed(**PIXDIM, pixdim=[1, 1, -3, 2, 0, 0, 0, 0]),
        r"voxels of \[1\.0, -3\.0, 2\.0\] mm \(pixdim\), three sizes above 0 expected",
    ),
    "spacing-that-is-no-number": (
        header_changed(**PIXDIM, pixdim=[1, 1, np.nan, 2, 0, 0, 0, 0]),
        "NIfTI file expected|three sizes above 0 expected|three different axes expected",
    ),
    "nan-voxel": (with_voxel(np.nan), "1 voxels are NaN or infinite, finite values expected"),
    "infinite-voxel": (with_voxel(-np.inf), "1 voxels are NaN or infinite, finite values expected"),
    "beyond-float32": (with_voxel(1e300, np.float64), "1 voxels are NaN or infinite, finite values expected"),
    "colours": (saved(np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), "voxels of type .*, numbers expected"),
    "complex-numbers": (saved(np.ones(SHAPE, np.complex64)), "voxels of type complex64, numbers expected"),
    "zero-everywhere": (saved(np.zeros(SHAPE, np.int16)), "the image is zero everywhere, other values expected"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_it_is_reported_and_the_others_are_predicted(bench: Any, name: str) -> None:
    spoil, message = BROKEN[name]
    path = bench.scans / "bad.nii.gz"
    spoil(path)
    failures = bench.predict()
    assert list(failures) == ["bad"]
    assert failures["bad"].startswith(f"{path}: ") and re.search(message, failures["bad"]), failures
    assert bench.results() == [".predicted/good.json", "good.nii.gz"]


def test_modalities_that_do_not_belong_together(bench: Any) -> None:
    first, second = (bench.scans / f"x_000{channel}.nii.gz" for channel in range(2))
    bench.write(first, bench.voxels())
    bench.write(second, bench.voxels(), np.diag([-1.0, -1.0, 2.5, 1.0]))
    with pytest.raises(InputError, match=r"affines differ by up to 2\.75 mm, at most 0\.1 mm expected") as caught:
        read_volume([first, second])
    assert str(caught.value).startswith(f"{first} and {second}: ")
    bench.write(second, bench.voxels((*SHAPE, 2)))
    with pytest.raises(
        InputError, match=r"x_0001\.nii\.gz: has 2 channels, one expected where each channel has its own"
    ):
        read_volume([first, second])


@pytest.mark.parametrize("name", BROKEN)
def test_training_is_refused_before_anything_is_prepared(bench: Any, name: str) -> None:
    spoil, message = BROKEN[name]
    spoil(bench.image("b"))
    text = bench.refusal()
    assert f"case b: {bench.image('b')}: " in text and re.search(message, text), text
    assert bench.leftovers() == []
