"""Where voxels lie in mm, and whether two images share one grid.

A label or channel on an image's grid is ordered by the image's affine, never by its own. Two affines that differ by
rounding only can give different axes: at 45 degrees each axis is as near to one direction as to the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel import orientations

from e2enet.common.errors import InputError
from e2enet.data.formats.image_file import ImageFile

# A fraction of the smallest voxel size. Storing an affine as a qform (a quaternion of float32 numbers) moves voxels by
# up to hundredths of a mm. Half a voxel would already shift a label by one voxel.
SAME_GRID = 0.1
ROUNDING = 1e-3  # a smaller offset is the rounding of float32 headers, and not reported
HEADER_DIGITS = 1e-4  # an offset of 0.1 may be stored as 0.10001
TIE_TOLERANCE = 0.01
# A fraction of a voxel size. Float32 headers of a turned scan of 3 x 1 x 1 mm give 3.00000007 x 1.00000003 x 1 mm.
SPACING_ROUNDING = 1e-6
ANISOTROPY = 3.0  # nnU-Net's threshold: an axis whose voxels exceed others by this factor lies across slices
AXIS_NAMES = ("right-left", "anterior-posterior", "superior-inferior")  # of RAS
# The three low bits of a header's xyzt_units. As in ITK, all other codes mean mm.
MILLIMETRES = {1: 1e3, 2: 1.0, 3: 1e-3}
UNITS = {1: "metres", 2: "mm", 3: "microns"}
# Values of `data.spacing_unit`, and their bits in xyzt_units.
Unit = Literal["m", "mm", "um"]
UNIT_CODES: dict[str, int] = {"m": 1, "mm": 2, "um": 3}
REPAIR = "e2enet check .. repair=FOLDER writes copies of labels with their images' affines"


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where a file's voxels lie, and which RAS axis (0, 1, 2) is the depth axis of the frame.

    `shape` (3,) and `affine` (4, 4), voxel -> mm, are the file's own. With `file_axes` the frame keeps the file's axes
    and directions, as nnU-Net reads scans: `depth_axis` is then an axis of the file.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    depth_axis: int
    file_axes: bool = False

    @property
    def orientation(self) -> np.ndarray:
        """nibabel's (3, 2) table: the RAS axis (with `file_axes` the file's own) and direction of each axis."""
        return orientations.io_orientation(np.eye(4) if self.file_axes else self.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm per voxel along the frame's (D, H, W)."""
        native = np.linalg.norm(self.affine[:3, :3], axis=0)
        depth, height, width = self._to_frame_order(native)
        return float(depth), float(height), float(width)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        depth, height, width = self._to_frame_order(np.asarray(self.shape))
        return int(depth), int(height), int(width)

    def _to_frame_order(self, native: np.ndarray) -> np.ndarray:
        ras = np.empty_like(native)
        ras[self.orientation[:, 0].astype(int)] = native
        return ras[[self.depth_axis, *(axis for axis in range(3) if axis != self.depth_axis)]]


@dataclass(frozen=True, order=True)
class Offset:
    """The largest distance between the corners of two grids: as a fraction of the smallest voxel size, and in mm."""

    share: float
    mm: float

    @property
    def same_grid(self) -> bool:
        """Whether both grids count as one; False for NaN."""
        return self.share <= SAME_GRID + HEADER_DIGITS

    @property
    def worth_telling(self) -> bool:
        """Whether it is more than the rounding of headers."""
        return not self.share <= ROUNDING

    def __str__(self) -> str:
        return f"{self.mm:.3g} mm ({self.share:.2g} of the smallest voxel size)"


def grid_offset(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> Offset:
    """Return the offset between two affines (4, 4) in mm for one shape, from the outer corners of their voxels."""
    corners = np.array(np.meshgrid(*[(-0.5, size - 0.5) for size in shape[:3]], [1], indexing="ij")).reshape(4, -1)
    moved = float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max())
    smallest = min(float(np.linalg.norm(affine[:3, :3], axis=0).min()) for affine in (first, second))
    return Offset(moved / smallest if smallest > 0 else float("nan"), moved)


def same_grid(first: Geometry, second: Geometry) -> bool:
    """Whether two images share a grid: one shape, and corners at most a tenth of the smallest voxel size apart.

    Check, preparation, prediction, evaluation and reports all use this rule.
    """
    return first.shape == second.shape and grid_offset(first.affine, second.affine, first.shape).same_grid


def same_directions(first: Geometry, second: Geometry) -> bool:
    """Whether the axes of two files point alike, each within 45 degrees, so that their voxels have the same order."""
    between = np.linalg.inv(first.affine) @ second.affine
    return bool((orientations.io_orientation(between) == [[0, 1], [1, 1], [2, 1]]).all())


def grid_problem(
    first: Geometry, second: Geometry, names: tuple[str, str] = ("first", "second"), *, repair: bool = False
) -> str | None:
    """Return why two images are not on one grid, with both affines; None if they are (`same_grid`).

    `repair` adds the command that corrects labels, if it can correct this one.
    """
    if same_grid(first, second):
        return None
    if first.shape != second.shape:
        return f"shapes {first.shape} and {second.shape}, the same grid expected"
    offset = grid_offset(first.affine, second.affine, first.shape)
    most = SAME_GRID * offset.mm / offset.share
    affines = [np.array2string(geometry.affine, suppress_small=True) for geometry in (first, second)]
    matrices = "".join(f"\n{name}:\n{affine}" for name, affine in zip(names, affines, strict=True))
    offer = f"; {REPAIR}" if repair and same_directions(first, second) else ""
    return f"the affines differ by up to {offset.mm:.3g} mm, at most {most:.3g} mm expected{offer}{matrices}"


def require_same_grid(first: Geometry, second: Geometry, names: str) -> None:
    """Raise InputError, starting with `names`, if two images are not on one grid (`grid_problem`)."""
    problem = grid_problem(first, second)
    if problem:
        raise InputError(f"{names}: {problem}")


def choose_depth_axis(spacings: Any) -> int:
    """Return the RAS axis with the largest median spacing; `spacings` is (n, 3), one row per image in RAS order.

    Axes within 1 % of the largest are tied. The last of them is taken, so isotropic data has axial slices.
    """
    median = np.median(np.asarray(spacings, dtype=float), axis=0)
    return int(np.flatnonzero(median >= median.max() * (1 - TIE_TOLERANCE))[-1])


def geometry_of(image: ImageFile, depth_axis: int | None, file_axes: bool = False) -> Geometry:
    """Return the geometry of an open image; raise InputError if its shape or affine cannot be used.

    `depth_axis=None` takes the image's own axis of largest spacing.
    """
    path, shape, affine = image.path, image.shape, image.affine
    if len(shape) < 3 or sum(size != 1 for size in shape[3:]) > 1 or min(shape) < 1:
        raise InputError(f"{path}: shape {shape}, a 3D image or a 4D one with channels last expected")
    if not _spans_space(affine[:3, :3]):
        raise InputError(f"{path}: the affine {affine[:3].tolist()} cannot be inverted, three different axes expected")
    x, y, z = shape[:3]
    if depth_axis is None:
        depth_axis = choose_depth_axis([Geometry((x, y, z), affine, 0, file_axes).spacing])
    return Geometry((x, y, z), affine, depth_axis, file_axes)


def in_millimetres(affine: np.ndarray, header: Any) -> np.ndarray:
    """Convert a header's affine (4, 4) from the header's unit to mm."""
    scaled = np.array(affine, dtype=float)
    scaled[:3] *= millimetres_per_unit(header)
    return scaled


def in_unit(image: ImageFile, unit: Unit) -> ImageFile:
    """Return an open image with its lengths read in `unit`, whatever its header says. Its new header names `unit`."""
    code, header = UNIT_CODES[unit], None if image.header is None else image.header.copy()
    affine = image.affine.copy()
    affine[:3] *= MILLIMETRES[code] / millimetres_per_unit(image.header)
    if isinstance(header, nib.Nifti1Header):
        header["xyzt_units"] = int(header["xyzt_units"]) & ~7 | code
    return replace(image, affine=affine, header=header)


def millimetres_per_unit(header: Any) -> float:
    """Return the mm in the unit of length of a NIfTI header; 1 if it names none, and for other kinds of header."""
    return MILLIMETRES.get(_unit_code(header), 1.0)


def unit_of_length(header: Any) -> str:
    """Return the unit of length of a header in words."""
    return UNITS.get(_unit_code(header), "mm")


def _unit_code(header: Any) -> int:
    return int(header["xyzt_units"]) & 7 if isinstance(header, nib.Nifti1Header) else 0


def _spans_space(axes: np.ndarray) -> bool:
    """Whether the columns of (3, 3) are finite and linearly independent, whatever their lengths (mm)."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(axes, axis=0)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        return False
    return bool(abs(np.linalg.det(axes / lengths)) > 1e-6)
