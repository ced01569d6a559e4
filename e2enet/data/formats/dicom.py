"""A folder of DICOM slices as one volume: a single series of evenly spaced slices.

SimpleITK reads the slices (GDCM applies their rescale slope and intercept). It would also stack several series, or a
series with a missing slice, and only warn on the console. So the headers are checked here first.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK

from e2enet.common.errors import InputError
from e2enet.data.formats.grid import SAME_GRID
from e2enet.data.formats.image_file import ImageFile
from e2enet.data.formats.itk import LPS_TO_RAS, flat_voxels, naming_itk_errors, open_reader, pixel_type
from e2enet.data.formats.listing import FILE_ENDINGS
from e2enet.data.formats.nifti import MAX_COMPRESSION, cut_off

SLICE_ENDINGS = (".dcm", ".dicom", ".ima")
MAGIC_OFFSET, MAGIC = 128, b"DICM"
INDEX = "DICOMDIR"  # lists the files of a disc; it begins like a DICOM image
PIXELS = bytes.fromhex("e07f1000")  # tag of the pixels, little-endian
SERIES = "0020|000e"  # SeriesInstanceUID
ALIKE = 1e-4  # directions and spacings of one volume's slices differ by rounding only
NAMED = 3


@dataclass(frozen=True, eq=False)
class _Slice:
    """The header of a slice: `origin` (3,), `direction` (3, 3) and `spacing` (3,) in ITK's LPS, mm."""

    path: Path
    series: str
    size: tuple[int, ...]
    origin: np.ndarray
    direction: np.ndarray
    spacing: np.ndarray
    pixel: int
    components: int


def holds_slices(folder: Path) -> bool:
    """Whether a folder holds DICOM slices and no image of another format."""
    if not folder.is_dir():
        return False
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return not any(path.name.endswith(FILE_ENDINGS) for path in files) and any(map(_is_slice, files))


def slice_files(folder: Path) -> list[Path]:
    """Return the DICOM files directly in a folder, sorted, recognised by their name or first bytes."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and _is_slice(path))


def open_series(folder: Path) -> ImageFile:
    """Open the volume of a folder's slices without reading voxels.

    Raise InputError naming the folder if a file is no DICOM image, there are several series, slices differ in size,
    orientation or spacing, two have the same position, or gaps are uneven, as with a missing slice.
    """
    files = slice_files(folder)
    if not files:
        raise InputError(f"{folder}: holds no DICOM slice, a folder of one series expected")
    slices = _read_headers(folder, files)
    _require_one_volume(folder, slices)
    slices, step = _in_order(folder, slices) if len(slices) > 1 else (slices, None)
    first = slices[0]
    if step is None:
        step = first.direction[:, 2] * first.spacing[2]
    affine = np.eye(4)
    affine[:3, :2], affine[:3, 2], affine[:3, 3] = first.direction[:, :2] * first.spacing[:2], step, first.origin
    pixels = {one.pixel for one in slices}
    kind = SimpleITK.sitkFloat32 if len(pixels) > 1 else pixels.pop()  # each slice of a PET has its own scale
    dtype, shape = pixel_type(kind, folder), (*first.size[:2], first.size[2] * len(slices))
    shape += (first.components,) * (first.components > 1)
    needed, size = math.prod(shape) * dtype.itemsize, sum(path.stat().st_size for path in files)
    if needed > size * MAX_COMPRESSION:
        raise cut_off(folder, f"{needed} bytes of voxels expected, the files have {size}")
    read = partial(_read_voxels, folder, [one.path for one in slices], kind)
    return ImageFile(folder, shape, LPS_TO_RAS @ affine, dtype, 1.0, 0.0, None, read)


def _is_slice(path: Path) -> bool:
    if path.name == INDEX or not path.is_file():
        return False
    if path.name.lower().endswith(SLICE_ENDINGS):
        return True
    with path.open("rb") as stream:
        return stream.read(MAGIC_OFFSET + len(MAGIC))[MAGIC_OFFSET:] == MAGIC


def _read_headers(folder: Path, files: list[Path]) -> list[_Slice]:
    slices, broken = [], []
    for path in files:
        try:
            slices.append(_read_header(path))
        except InputError:
            broken.append(path.name)
    if broken:
        named = ", ".join(broken[:NAMED]) + f" and {len(broken) - NAMED} more" * (len(broken) > NAMED)
        raise InputError(f"{folder}: {named}: no DICOM image that can be read, a folder of one series expected")
    return slices


def _read_header(path: Path) -> _Slice:
    reader = open_reader(path, "GDCMImageIO")
    _require_whole(path, reader)
    series = reader.GetMetaData(SERIES).strip() if reader.HasMetaDataKey(SERIES) else ""
    origin, direction, spacing = (np.array(get()) for get in (reader.GetOrigin, reader.GetDirection, reader.GetSpacing))
    place = origin, direction.reshape(3, 3), spacing
    return _Slice(path, series, tuple(reader.GetSize()), *place, reader.GetPixelID(), reader.GetNumberOfComponents())


def _require_whole(path: Path, reader: SimpleITK.ImageFileReader) -> None:
    """Raise InputError if uncompressed pixels end before their stated length: older GDCM reads zeros there."""
    tags = ("0028|0010", "0028|0011", "0028|0100", "0028|0002")  # rows, columns, bits, samples
    if not all(map(reader.HasMetaDataKey, tags)):
        return
    rows, columns, bits, samples = (int(reader.GetMetaData(tag)) for tag in tags)
    expected, content = rows * columns * samples * bits // 8, path.read_bytes()
    start = content.find(PIXELS)
    while start >= 0:
        # An explicit type of two letters and two empty bytes stand before the length, or nothing does.
        at = start + len(PIXELS) + 4 * content[start + len(PIXELS) : start + len(PIXELS) + 2].isalpha()
        length = int.from_bytes(content[at : at + 4], "little")
        if length in (expected, expected + 1) and at + 4 + length > len(content):
            raise cut_off(path, f"{length} bytes of pixels expected, the file has {len(content) - at - 4}")
        start = content.find(PIXELS, start + 1)


def _require_one_volume(folder: Path, slices: list[_Slice]) -> None:
    """Raise InputError unless all slices are of one series, size, orientation and spacing."""
    series = Counter(one.series for one in slices)
    if len(series) > 1:
        listed = ", ".join(f"{uid or 'without UID'} ({count} slices)" for uid, count in sorted(series.items())[:NAMED])
        raise InputError(
            f"{folder}: holds {len(series)} series, {listed}{' ..' * (len(series) > NAMED)}; a folder for each expected"
        )
    first = slices[0]
    for one in slices[1:]:
        if one.size != first.size or one.components != first.components:
            found = f"{_spell(one.size)} and {first.path.name} of {_spell(first.size)} pixels"
        elif not np.allclose(one.direction, first.direction, atol=ALIKE):
            found = f"another orientation than {first.path.name}"
        elif not np.allclose(one.spacing[:2], first.spacing[:2], rtol=ALIKE):
            found = f"{_spell(one.spacing[:2])} mm and {first.path.name} of {_spell(first.spacing[:2])} mm a pixel"
        else:
            continue
        raise InputError(f"{folder}: {one.path.name} is of {found}; slices that are alike expected")
    if len(slices) > 1 and first.size[2] > 1:
        raise InputError(f"{folder}: {len(slices)} files of {first.size[2]} frames each, one such file expected")


def _in_order(folder: Path, slices: list[_Slice]) -> tuple[list[_Slice], np.ndarray]:
    """Return the slices sorted along their normal, and the constant step (3,) in mm from one to the next.

    The step need not follow the normal: a tilted gantry shifts the slices. Raise InputError if two slices have the
    same position, or if one lies further from its even position than `SAME_GRID` allows.
    """
    normal = slices[0].direction[:, 2]
    slices = sorted(slices, key=lambda one: float(one.origin @ normal))
    origins = np.array([one.origin for one in slices])
    gaps = np.diff(origins @ normal)
    width = float(slices[0].spacing[:2].min())
    closest = int(gaps.argmin())
    if gaps[closest] <= ALIKE * width:
        names = f"{slices[closest].path.name} and {slices[closest + 1].path.name}"
        raise InputError(f"{folder}: {names} lie at one place, one slice at each expected")
    places = np.linspace(origins[0], origins[-1], len(slices))
    if np.linalg.norm(origins - places, axis=1).max() > SAME_GRID * min(width, float(gaps.min())):
        widest = int(gaps.argmax())
        raise InputError(
            f"{folder}: gaps between slices are {gaps.min():.4g} to {gaps.max():.4g} mm, the widest after "
            f"{slices[widest].path.name}; even ones expected: is a slice missing?"
        )
    return slices, (origins[-1] - origins[0]) / (len(slices) - 1)


def _read_voxels(folder: Path, files: list[Path], pixel: int) -> np.ndarray:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in files])
    reader.SetOutputPixelType(pixel)
    with naming_itk_errors(folder):
        return flat_voxels(reader.Execute())


def _spell(values: tuple[int, ...] | np.ndarray) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
