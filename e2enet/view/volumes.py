"""Volumes as the viewer's page reads them: NIfTI in RAS order, packed by gzip and written as base64 text.

The page shows slices along the axes of the voxels. In RAS order (x to the right, y to the front, z to the head) the
planes have their usual names, whatever the order of the file was.
"""

from __future__ import annotations

import base64
import gzip
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations

from e2enet.common.errors import InputError
from e2enet.data.formats.grid import Geometry
from e2enet.data.formats.volume import to_frame
from e2enet.inference.contours import intensity_window
from e2enet.inference.spool import KEY

MAX_BYTES = 32 * 2**20  # of a channel's voxels, 256^3 of int16; a scan of more is cropped and stored as 8 bit
MARGIN = 20.0  # mm around the labels of a cropped scan
COMPRESSION = 4  # of gzip: half the time of its default and 2 % larger, measured on a CT
HEADER_BYTES = 352  # of NIfTI: 348 and four that say that no extension follows
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Scan:
    """One channel as it is stored: value = array * slope + intercept.

    Attributes:
        array: (x, y, z) in RAS order.
        window: The values that are shown black and white.
    """

    array: np.ndarray
    slope: float
    intercept: float
    window: tuple[float, float]


def to_ras(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """View an array of the frame (D, H, W) in RAS order (x, y, z)."""
    return np.moveaxis(array, 0, geometry.depth_axis)


def ras_affine(geometry: Geometry, box: Box | None = None) -> np.ndarray:
    """Return the affine (4, 4), voxel of RAS order -> mm, of the grid or of a part of it."""
    affine = geometry.affine @ orientations.inv_ornt_aff(geometry.orientation, geometry.shape)
    if box is not None:
        affine[:3, 3] = (affine @ [*(part.start for part in box), 1])[:3]
    return affine


def ras_shape(geometry: Geometry) -> tuple[int, int, int]:
    """Return the numbers of voxels along x, y, z."""
    depth, *others = geometry.frame_shape
    others.insert(geometry.depth_axis, depth)
    return others[0], others[1], others[2]


def whole_box(geometry: Geometry) -> Box:
    """Return the part of the grid that is all of it."""
    x, y, z = ras_shape(geometry)
    return slice(0, x), slice(0, y), slice(0, z)


def box_around(maps: Sequence[np.ndarray], geometry: Geometry, margin: float) -> Box:
    """Return the smallest box with all nonzero voxels of the maps (x, y, z), and a margin in mm; all without any."""
    spacing = np.linalg.norm(ras_affine(geometry)[:3, :3], axis=0)
    whole = whole_box(geometry)
    parts = []
    for axis, full in enumerate(whole):
        others = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(np.any([(labels != 0).any(axis=others) for labels in maps], axis=0))
        if not occupied.size:
            return whole
        around = int(np.ceil(margin / spacing[axis] - 1e-3))  # spacings of float32 headers: 0.99999994 mm is 1 mm
        parts.append(slice(max(0, int(occupied[0]) - around), min(full.stop, int(occupied[-1]) + 1 + around)))
    return parts[0], parts[1], parts[2]


def whole_numbers(array: np.ndarray) -> np.dtype:
    """Return the smallest type that holds float32 values exactly: uint8, int16 or float32."""
    low, high = float(array.min()), float(array.max())
    # Plane by plane, for the memory; the first plane with a fraction ends it.
    if any((plane != np.rint(plane)).any() for plane in array):
        return np.dtype(np.float32)
    fits = [kind for kind in (np.uint8, np.int16) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max]
    return np.dtype(fits[0] if fits else np.float32)


def is_large(array: np.ndarray) -> bool:
    """Whether a channel takes more than MAX_BYTES with its own values."""
    return array.size * whole_numbers(array).itemsize > MAX_BYTES


def exact_scan(array: np.ndarray) -> Scan:
    """Store a channel (x, y, z), float32, with its own values."""
    return Scan(array.astype(whole_numbers(array)), 1.0, 0.0, intensity_window(array))


def rounded_scan(array: np.ndarray) -> Scan:
    """Store a channel (x, y, z), float32, as 8 bit between its 0.5 and 99.5 percentiles."""
    low, high = intensity_window(array)
    slope = (high - low) / 255
    stored = np.empty(array.shape, dtype=np.uint8)
    for target, plane in zip(stored, array, strict=True):
        target[...] = np.rint((np.clip(plane, low, high) - low) / slope)
    return Scan(stored, slope, low, (low, high))


def label_window(array: np.ndarray, labelled: np.ndarray) -> tuple[float, float] | None:
    """Return the 5 and 95 percentiles of the labelled voxels of a channel, widened by half their distance on each side.

    In a CT, air and bone leave few greys to the organs if the whole scan is shown. None if nothing is labelled.
    """
    if not labelled.any():
        return None
    low, high = map(float, np.percentile(array[labelled], (5, 95)))
    around = max((high - low) / 2, 1e-6)
    return low - around, high + around


def encode_nifti(array: np.ndarray, affine: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> str:
    """Return a NIfTI file of an array (x, y, z), packed by gzip, as base64 text.

    nibabel chooses a scaling of its own where it writes arrays, so only the header is its work here.
    """
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(slope, intercept)
    header.set_sform(affine, code=2)
    header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))  # the proportions in which NiiVue shows slices
    header.set_xyzt_units("mm")
    header["vox_offset"] = HEADER_BYTES
    header["magic"] = b"n+1"
    content = io.BytesIO()
    # No file name and no time: the same voxels give the same text.
    with gzip.GzipFile("", "wb", COMPRESSION, content, mtime=0) as packed:
        packed.write(header.binaryblock.ljust(HEADER_BYTES, b"\0"))
        packed.write(array.tobytes(order="F"))
    return base64.b64encode(content.getvalue()).decode("ascii")


def read_probabilities(path: Path, geometry: Geometry) -> Iterator[np.ndarray]:
    """Yield each channel of a prediction's .npz as uint8 (x, y, z) in RAS order, 255 for a probability of 1.

    One channel is in memory at a time: those of a CT with 16 classes would fill it. Raises InputError naming the file
    if it is no `.npz` of predict on this grid.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{KEY}.npy") as member:
            np.lib.format.read_magic(member)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
            if len(shape) != 4 or is_fortran or dtype != np.float16 or tuple(shape[1:]) != geometry.shape:
                expected = f"float16 (classes, {', '.join(map(str, geometry.shape))}) expected"
                raise InputError(f"{path}: holds {dtype} of shape {shape}, {expected}")
            size = int(np.prod(shape[1:])) * dtype.itemsize
            for _ in range(shape[0]):
                native = np.frombuffer(member.read(size), dtype).reshape(shape[1:])
                yield to_ras(np.rint(to_frame(native, geometry).astype(np.float32) * 255).astype(np.uint8), geometry)
    except (zipfile.BadZipFile, KeyError, OSError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as probabilities of predict ({error})") from error
