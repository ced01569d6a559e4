"""Open an image of any supported format: NIfTI, the formats read by SimpleITK, a folder of DICOM slices."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.data.formats.dicom import open_series, slice_files
from e2enet.data.formats.grid import Unit, in_unit
from e2enet.data.formats.image_file import ImageFile
from e2enet.data.formats.itk import open_itk
from e2enet.data.formats.listing import ITK_ENDINGS
from e2enet.data.formats.nifti import open_nifti
from e2enet.data.formats.voxel_storage import read_storage


def open_image(path: Path, unit: Unit | None = None) -> ImageFile:
    """Open the image at a path without reading its voxels.

    The name's ending decides the format; a folder holds DICOM slices. Lengths are in `unit`; None takes the header's
    unit. Raise InputError naming the path if it is missing, is no such image, or its voxels are no numbers.
    """
    image = _open(path)
    return image if unit is None else in_unit(image, unit)


def files_of(path: Path) -> list[Path]:
    """Return the files of an image: the file and, for a header alone, its voxel file; or the slices of a folder.

    For a file that cannot be opened, return its path alone.
    """
    if path.is_dir():
        return slice_files(path)
    if path.name.endswith(ITK_ENDINGS):
        with suppress(InputError):  # opening the image raises it
            return list(dict.fromkeys([path, read_storage(path).file]))
    return [path]


def _open(path: Path) -> ImageFile:
    if path.is_dir():
        return open_series(path)
    return open_itk(path) if path.name.endswith(ITK_ENDINGS) else open_nifti(path)
