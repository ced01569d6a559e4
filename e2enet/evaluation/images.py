"""Read label images (whole-number voxels) and check that two share a grid."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import SpatialImage

from e2enet.common.errors import InputError
from e2enet.data.formats.case import count_labels
from e2enet.data.formats.forms import spacing_conflict
from e2enet.data.formats.grid import Geometry, Unit, grid_problem, in_millimetres, in_unit
from e2enet.data.formats.image_file import ImageFile
from e2enet.data.formats.labels import apply_label_map, whole_labels
from e2enet.data.formats.listing import FILE_ENDINGS
from e2enet.data.formats.nifti import placed_affine
from e2enet.data.formats.opening import open_image
from e2enet.data.formats.remarks import spacing_warnings

READ_ERRORS = (ImageFileError, OSError, EOFError, ValueError, zlib.error)


@dataclass(frozen=True)
class LabelImage:
    """Whole-number voxels in file order, and the set of values among them."""

    array: np.ndarray
    values: frozenset[int]

    @classmethod
    def of(cls, array: np.ndarray) -> LabelImage:
        """Wrap an array of whole numbers from 0."""
        return cls(array, frozenset(count_labels([array])))


def grid_problems(case: str, prediction: Path, reference: Path, unit: Unit | None = None) -> list[str]:
    """List what keeps two images from being compared: unreadable, another shape, another grid (`same_grid`).

    `unit` is the length unit of the reference; None: as its header says.
    """
    try:
        images = [_open(reference, unit), _open(prediction)]
    except InputError as error:
        return [str(error)]
    shapes = [image.squeezed_shape for image in images]
    if any(len(shape) != 3 for shape in shapes):
        return [f"{case}: expected 3D images, got prediction {shapes[1]}, reference {shapes[0]}"]
    if shapes[0] != shapes[1]:
        return [f"{case}: shape {shapes[1]} of {prediction} is not the reference's {shapes[0]}"]
    wanted, found = map(_geometry, images)
    problem = grid_problem(wanted, found, ("reference", "prediction"), repair=True)
    return [f"{case}: {prediction} is not on the grid of {reference}: {problem}"] if problem else []


def warn_of_spacings(pairs: Mapping[str, tuple[Path, Path]], unit: Unit | None = None) -> list[str]:
    """Warn of files of {case: (prediction, reference)} whose sform and pixdim contradict each other.

    `unit` is the length unit of the references; None: as each header says.
    """
    conflicts = []
    for case, (prediction, reference) in pairs.items():
        for path, image in ((reference, _open(reference, unit)), (prediction, _open(prediction))):
            conflicts.append((case, path, spacing_conflict(image.header)))
    return [str(warning) for warning in spacing_warnings(conflicts)]


def voxel_spacing(path: Path, unit: Unit | None = None) -> tuple[float, float, float]:
    """Voxel size in mm per file axis, from the affine."""
    x, y, z = (float(size) for size in nib.affines.voxel_sizes(_geometry(_open(path, unit)).affine))
    return x, y, z


def read_label_image(path: Path, label_map: Mapping[int, int] | None = None) -> LabelImage:
    """Read a label image, renumbered by `label_map` (value in the file -> label).

    Raises InputError if the file is damaged or its values are not labels. Training and the dataset check use the same
    rule (`whole_labels`).
    """
    image = _open(path)
    try:
        raw = image.read_values()
    except READ_ERRORS as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    array = apply_label_map(whole_labels(raw, path), label_map or {})
    return LabelImage.of(array)


def _open(path: Path, unit: Unit | None = None) -> ImageFile:
    """Open an image as training and prediction do. nibabel reads other formats and scales their values."""
    if path.name.endswith(FILE_ENDINGS):
        return open_image(path, unit)
    try:
        image: Any = nib.load(path)
    except READ_ERRORS as error:
        raise InputError(f"{path}: is no image that nibabel reads ({error})") from error
    if not isinstance(image, SpatialImage) or image.affine is None:
        raise InputError(f"{path}: has no affine, so its grid is unknown")
    is_nifti = isinstance(image.header, nib.Nifti1Header)  # a pair of .hdr and .img
    affine = placed_affine(image, path) if is_nifti else in_millimetres(image.affine, image.header)
    dtype = image.get_data_dtype()

    def read() -> np.ndarray:
        return np.asanyarray(image.dataobj).reshape(-1, order="F")

    opened = ImageFile(path, image.shape, affine, dtype, 1.0, 0.0, None, read)
    return opened if unit is None else in_unit(opened, unit)


def _geometry(image: ImageFile) -> Geometry:
    """Return the image's grid; its depth axis is not used here."""
    x, y, z = image.squeezed_shape
    return Geometry((x, y, z), image.affine, 0)
