"""Opening an image of any format that is read: NIfTI, what SimpleITK reads besides, a folder of DICOM slices."""

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
    """The image at a path, voxels unread, by the end of its name; a folder is one of DICOM slices.

    Its lengths count in `unit`; None: in that of its header. InputError naming it where it is not there, no such image,
    or holds no numbers.
    """
    image = _open(path)
    return image if unit is None else in_unit(image, unit)


def files_of(path: Path) -> list[Path]:
    """The files that an image lies in: itself, and that of its voxels where it is a header alone; the slices of a
    folder. Of what cannot be opened, the path."""
    if path.is_dir():
        return slice_files(path)
    if path.name.endswith(ITK_ENDINGS):
        with suppress(InputError):  # which opening it will raise
            return list(dict.fromkeys([path, read_storage(path).file]))
    return [path]


def _open(path: Path) -> ImageFile:
    if path.is_dir():
        return open_series(path)
    return open_itk(path) if path.name.endswith(ITK_ENDINGS) else open_nifti(path)
