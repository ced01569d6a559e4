"""How a look-alike's arrays are stored in a NIfTI file: orientation, spacing, tilt, data type and scaling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations


@dataclass(frozen=True)
class Grid:
    """The position of an array in RAS index order, and the orientation in which a file stores it.

    Attributes:
        spacing: mm along right-left, anterior-posterior, superior-inferior.
        orientation: Directions of the file's axes, such as "LPS" or "RAS".
        tilt: Degrees by which the slices are turned about the right-left axis (an oblique affine).
        origin: mm, of the array's first voxel.
        wrong_sform: Whether the file's sform has voxels of 1 x 1 x 1 mm at the origin, as in the files of ACDC. Then
            pixdim and the qform alone hold the spacing.
    """

    spacing: tuple[float, float, float]
    orientation: str = "RAS"
    tilt: float = 0.0
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    wrong_sform: bool = False

    def affine(self) -> np.ndarray:
        """Return the matrix (4, 4) from array index to mm."""
        cos, sin = np.cos(np.deg2rad(self.tilt)), np.sin(np.deg2rad(self.tilt))
        turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        affine = np.eye(4)
        affine[:3, :3] = turn @ np.diag(self.spacing)
        affine[:3, 3] = self.origin
        return affine


@dataclass(frozen=True)
class Encoding:
    """Data type on disk; a value is slope * stored + intercept. `slope=None` leaves the header's fields unset."""

    dtype: str
    slope: float | None = None
    intercept: float = 0.0


LABEL = Encoding("uint8")


def save_label(path: Path, label: np.ndarray, grid: Grid, encoding: Encoding = LABEL) -> None:
    """Write a label (X, Y, Z)."""
    _save(path, label, grid, encoding)


def save_image(path: Path, channels: Sequence[np.ndarray] | np.ndarray, grid: Grid, encoding: Encoding) -> None:
    """Write channels (C, X, Y, Z): a single one as a 3D image, several as 4D with channels last."""
    stacked = np.stack(list(channels), axis=-1)
    _save(path, stacked[..., 0] if stacked.shape[-1] == 1 else stacked, grid, encoding)


def _save(path: Path, values: np.ndarray, grid: Grid, encoding: Encoding) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype(encoding.dtype)
    stored = (values - encoding.intercept) / (encoding.slope or 1.0)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        stored = np.clip(np.rint(stored), limits.min, limits.max)
    affine = grid.affine()
    here = orientations.io_orientation(affine)
    there = orientations.axcodes2ornt(tuple(grid.orientation))
    change = orientations.ornt_transform(here, there)
    turned = orientations.apply_orientation(stored.astype(dtype), change)
    image = nib.Nifti1Image(turned, affine @ orientations.inv_ornt_aff(change, values.shape[:3]))
    image.header.set_xyzt_units("mm")
    if grid.wrong_sform:
        image.set_qform(image.affine, 1)
        signs = np.sign(image.affine[:3, :3].round(6))
        image.header.set_sform(nib.affines.from_matvec(signs), 2)
        image = nib.Nifti1Image(turned, None, image.header)  # with an affine nibabel would write that as the sform
    if encoding.slope is not None:
        # nibabel then writes the voxels as they are and readers scale them.
        image.header.set_slope_inter(encoding.slope, encoding.intercept)
    nib.save(image, path)
