"""Images in the project's frame (RAS orientation, depth axis first, (C, D, H, W)), and back on their native grid.

Elsewhere every size, spacing, stride and mirror axis refers to this frame. Only this module reorders a file's axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import orientations

from e2enet.common.errors import InputError
from e2enet.common.files import atomic_path
from e2enet.data.formats.forms import header_affine
from e2enet.data.formats.grid import Geometry, Unit, geometry_of, millimetres_per_unit, require_same_grid, same_grid
from e2enet.data.formats.itk import write_itk
from e2enet.data.formats.labels import apply_label_map, whole_labels
from e2enet.data.formats.listing import ITK_ENDINGS
from e2enet.data.formats.nifti import without_history
from e2enet.data.formats.opening import open_image

ZERO_EVERYWHERE = "the image is zero everywhere, other values expected"
Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Volume:
    """An image in the frame: `array` float32 (C, D, H, W), `spacing` in mm along (D, H, W), and its file's geometry."""

    array: np.ndarray
    spacing: tuple[float, float, float]
    geometry: Geometry
    header: Any = None  # of the first file if that is NIfTI, for results written on its grid


def read_geometry(
    path: str | Path, depth_axis: int | None = None, unit: Unit | None = None, *, file_axes: bool = False
) -> Geometry:
    """Read the geometry from the header; `depth_axis=None` takes the image's own axis of largest spacing."""
    return geometry_of(open_image(Path(path), unit), depth_axis, file_axes)


def read_ras_spacing(path: str | Path, unit: Unit | None = None) -> tuple[float, float, float]:
    """Read mm per voxel along the right-left, anterior-posterior and superior-inferior axis from the header."""
    ras = read_geometry(path, 0, unit)  # with depth axis 0 the frame's order is RAS
    return ras.spacing


def read_volume(
    paths: Sequence[str | Path],
    depth_axis: int | None = None,
    unit: Unit | None = None,
    *,
    file_axes: bool = False,
) -> Volume:
    """Read one image: a file per channel, or a single 4D file whose last axis holds the channels.

    All channels are ordered by the first file's affine. Raises InputError naming the file if it is no 3D or 4D image,
    cannot be read, holds NaN or infinity, or has a singular affine, or if the channels lie on different grids
    (`same_grid`).
    """
    files = [Path(path) for path in paths]
    if not files:
        raise InputError("an image needs at least one file")
    images = [open_image(file, unit) for file in files]
    geometry = geometry_of(images[0], depth_axis, file_axes)
    array: np.ndarray | None = None
    for index, (file, image) in enumerate(zip(files, images, strict=True)):
        require_same_grid(geometry, geometry_of(image, geometry.depth_axis, file_axes), f"{files[0]} and {file}")
        stored = image.read_unscaled()
        if stored.ndim == 4 and len(files) > 1:
            raise InputError(
                f"{file}: has {stored.shape[3]} channels, one expected where each channel has its own file"
            )
        channels = np.moveaxis(stored, 3, 0) if stored.ndim == 4 else stored[None]
        if array is None:
            array = np.empty((max(len(files), len(channels)), *geometry.frame_shape), dtype=np.float32)
        for channel, target in zip(channels, array[index:], strict=False):
            _fill(target, _frame_view(channel, geometry), image.slope, image.intercept)
    assert array is not None
    infinite = array.size - sum(int(np.count_nonzero(np.isfinite(plane))) for channel in array for plane in channel)
    if infinite:
        raise InputError(f"{files[0]}: {infinite} voxels are NaN or infinite, finite values expected")
    header = None if images[0].header is None else images[0].header.copy()
    return Volume(array, geometry.spacing, geometry, header)


def read_label(
    path: str | Path,
    depth_axis: int | None,
    label_map: Mapping[int, int] | None = None,
    *,
    on: Geometry | None = None,
    unit: Unit | None = None,
) -> tuple[np.ndarray, Geometry]:
    """Read a label image as (D, H, W), uint8 or if needed int16, and its own geometry.

    `label_map` (value in the file -> label) renumbers its values. If the label is on the grid `on` of its image, its
    axes are ordered by that grid's affine, else by its own. Raise InputError if it does not hold whole numbers 0, 1, ..
    """
    path = Path(path)
    image = open_image(path, unit)
    geometry = geometry_of(image, depth_axis, on is not None and on.file_axes)
    data = image.read_values()
    if data.ndim != 3:
        raise InputError(f"{path}: a label image of shape {image.shape}, three axes expected")
    labels = apply_label_map(whole_labels(data, path), label_map or {})
    return to_frame(labels, on if on is not None and same_grid(on, geometry) else geometry), geometry


def read_label_on(
    grid: Geometry, path: str | Path, label_map: Mapping[int, int] | None = None, unit: Unit | None = None
) -> np.ndarray:
    """Read a label image that must be on the grid of its image; raise InputError naming the file if it is not."""
    label, geometry = read_label(path, grid.depth_axis, label_map, on=grid, unit=unit)
    require_same_grid(grid, geometry, f"{path}: not on the grid of its image")
    return label


def to_frame(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Native axes -> the frame, contiguous; (X, Y, Z) -> (D, H, W)."""
    return np.ascontiguousarray(_frame_view(array, geometry))


def to_native(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The frame -> the file's own axes, contiguous: (D, H, W) -> (X, Y, Z), (K, D, H, W) -> (K, X, Y, Z).
    Inverse of to_frame."""
    if array.ndim == 4:
        return np.stack([to_native(part, geometry) for part in array])
    if array.shape != geometry.frame_shape:
        raise ValueError(f"shape {array.shape} does not lie on the grid {geometry.frame_shape} (D, H, W)")
    ras_table = np.array([[0, 1], [1, 1], [2, 1]])
    back = orientations.ornt_transform(ras_table, geometry.orientation)
    ras = np.moveaxis(array, 0, geometry.depth_axis)
    return np.ascontiguousarray(orientations.apply_orientation(ras, back))


def to_ras_frame(array: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, Geometry]:
    """Return (D, H, W) and its geometry in the RAS frame: as they are unless the frame keeps the file's axes."""
    if not geometry.file_axes:
        return array, geometry
    depth_axis = int(orientations.io_orientation(geometry.affine)[geometry.depth_axis, 0])
    ras = replace(geometry, depth_axis=depth_axis, file_axes=False)
    return to_frame(to_native(array, geometry), ras), ras


def crop_to_nonzero(array: np.ndarray) -> Box:
    """Return the smallest box of (D, H, W) with all nonzero voxels of (C, D, H, W); raise InputError without any."""
    nonzero = np.any(array != 0, axis=0)
    if not nonzero.any():
        raise InputError(ZERO_EVERYWHERE)
    parts = []
    for axis in range(3):
        occupied = np.flatnonzero(nonzero.any(axis=tuple(other for other in range(3) if other != axis)))
        parts.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return parts[0], parts[1], parts[2]


def nonzero_mask(array: np.ndarray) -> np.ndarray:
    """Return a mask, true where any channel of (C, D, H, W) is nonzero and in enclosed holes, such as ventricles."""
    from scipy.ndimage import binary_fill_holes

    return binary_fill_holes(np.any(array != 0, axis=0))


def write_label_image(path: str | Path, label: np.ndarray, geometry: Geometry, header: Any = None) -> None:
    """Write labels (D, H, W) of the frame on the native grid, atomically, in the format of the name's ending.

    The affine is that of the geometry. `header`, of a NIfTI scan, gives units and orientation codes, but not the data
    type, nor texts that describe the scan (`without_history`). Lengths are written in the header's unit, since many
    programs ignore units.
    """
    native = to_native(label, geometry)
    dtype = np.uint8 if native.max(initial=0) <= 255 else np.int16
    _write(Path(path), native.astype(dtype), geometry, header)


def write_image(path: str | Path, array: np.ndarray, geometry: Geometry, header: Any = None) -> None:
    """Write float32 (D, H, W) or (K, D, H, W), e.g. probabilities, on the native grid, K as the last axis."""
    native = to_native(array.astype(np.float32, copy=False), geometry)
    _write(Path(path), np.moveaxis(native, 0, -1) if native.ndim == 4 else native, geometry, header)


def _write(path: Path, data: np.ndarray, geometry: Geometry, header: Any) -> None:
    if path.name.endswith(ITK_ENDINGS):
        write_itk(path, data, geometry.affine)
        return
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    affine = geometry.affine.copy()
    affine[:3] /= millimetres_per_unit(header)
    # If the affine is the header's, sform, qform and pixdim stay as they are, for programs that use another of them.
    # Without an affine nibabel changes none of them.
    kept = header is not None and np.allclose(affine, header_affine(header))
    image = kind(data, None if kept else affine, None if header is None else without_history(header))
    image.set_data_dtype(data.dtype)
    if header is None:
        image.header.set_xyzt_units("mm")
    # The original's display window and scaling describe intensities, not labels.
    image.header["cal_min"], image.header["cal_max"] = 0, 0
    image.header.set_slope_inter(1, 0)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _frame_view(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """View (X, Y, Z) as (D, H, W), without a copy."""
    ras = orientations.apply_orientation(array, geometry.orientation)
    return np.moveaxis(ras, geometry.depth_axis, 0)


def _fill(target: np.ndarray, stored: np.ndarray, slope: float, inter: float) -> None:
    """Scale stored values into float32 (D, H, W), by planes: one fits in the cache, in any memory order."""
    # Values beyond the range of float32 become infinite, which `read_volume` reports.
    with np.errstate(over="ignore"):
        for plane, values in zip(target, stored, strict=True):
            plane[...] = values if (slope, inter) == (1, 0) else values * slope + inter
