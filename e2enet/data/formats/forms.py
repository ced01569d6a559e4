"""Which statement of a NIfTI header places its voxels: the sform, the qform, or the voxel sizes (pixdim).

They should agree. Where they do not, nibabel takes the sform and ITK takes the voxel sizes of pixdim. ACDC's files need
the second: their sform has voxels of 1 x 1 x 1 mm, the scans of about 1.4 x 1.4 x 10 mm. Here the sform is used unless
its voxel sizes contradict pixdim; then the affine is ITK's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from e2enet.data.formats.grid import Offset, grid_offset, in_millimetres, millimetres_per_unit
from e2enet.data.formats.image_file import ImageFile

SAME_SPACING = 0.01  # a fraction; rounding is below 1e-5, and a tenth of a voxel in 10 voxels is more
SCANNER = 1  # the form code of coordinates of the scanner
ORTHOGONAL = 1e-3  # largest cosine between two axes of an sform whose directions ITK uses

Sizes = tuple[float, float, float]


@dataclass(frozen=True)
class SpacingConflict:
    """Voxel sizes in mm, along the file's axes, of an sform and of the pixdim that contradicts it."""

    sform: Sizes
    pixdim: Sizes

    @property
    def factor(self) -> float:
        """The largest ratio of two sizes, above 1."""
        ratio = np.divide(self.sform, self.pixdim)
        return float(np.maximum(ratio, 1 / ratio).max())


def spacing_conflict(header: Any) -> SpacingConflict | None:
    """Return the voxel sizes of sform and pixdim if they differ by more than 1 %.

    None without an sform, for other formats than NIfTI, and if either has a size that is no number above 0.
    """
    if not isinstance(header, nib.Nifti1Header) or int(header["sform_code"]) <= 0:
        return None
    sform = np.linalg.norm(header.get_sform()[:3, :3], axis=0)
    pixdim = np.asarray(header["pixdim"][1:4], dtype=float)
    sizes = np.stack([sform, pixdim])
    if not (np.isfinite(sizes) & (sizes > 0)).all() or (np.abs(sform / pixdim - 1) <= SAME_SPACING).all():
        return None
    (a, b, c), (x, y, z) = sizes * millimetres_per_unit(header)
    return SpacingConflict((float(a), float(b), float(c)), (float(x), float(y), float(z)))


def header_affine(header: Any) -> np.ndarray:
    """Return the affine (4, 4) of a NIfTI header, in the header's unit.

    It is the sform, else the qform, else voxel sizes alone. If sform and pixdim contradict each other
    (`spacing_conflict`), it is what ITK reads: voxel sizes of pixdim; directions and origin of the qform if its code is
    set, or of the sform if the qform's is not, or if the sform's code is that of the scanner and its axes are
    orthogonal.
    """
    if spacing_conflict(header) is None:
        return header.get_best_affine()
    affine = header.get_sform()
    affine[:3, :3] /= np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3].T @ affine[:3, :3] - np.eye(3)
    preferred = int(header["sform_code"]) == SCANNER and np.abs(cosines).max() <= ORTHOGONAL
    if int(header["qform_code"]) > 0 and not preferred:
        try:
            return header.get_qform()
        except ValueError:  # its quaternion is no rotation
            pass
    affine[:3, :3] *= np.asarray(header["pixdim"][1:4], dtype=float)
    return affine


def forms_offset(image: ImageFile) -> Offset | None:
    """Return the offset between sform and qform of an open NIfTI image whose sform is in use.

    None unless both are set (codes above 0), for other formats, and if pixdim contradicts the sform
    (`spacing_conflict`). Not finite if the qform is no rotation.
    """
    header = image.header
    if header is None or min(int(header["sform_code"]), int(header["qform_code"])) <= 0:
        return None
    if spacing_conflict(header) is not None:
        return None
    try:
        qform = header.get_qform()
    except ValueError:
        return Offset(float("inf"), float("inf"))
    return grid_offset(in_millimetres(header.get_sform(), header), in_millimetres(qform, header), image.shape)
