"""MetaImage, NRRD and GIPL files, read and written by SimpleITK, with axes in RAS as in NIfTI."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK

from e2enet.common.errors import InputError
from e2enet.common.files import TEMPORARY, atomic_path
from e2enet.data.formats.image_file import ImageFile
from e2enet.data.formats.voxel_storage import VoxelStorage, read_storage, require_possible, require_whole

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's axes point left, posterior, superior; its own inverse
READERS = {
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".gipl": "GiplImageIO",
}
WITHOUT_VOXELS = (".mhd", ".nhdr")  # headers whose voxels lie in a file beside them


def open_itk(path: Path) -> ImageFile:
    """Open an image without reading its voxels. Components of a voxel and a fourth axis both become the last axis.

    Raise InputError naming the file if it is no image, its voxels are no numbers, or it is too small to hold them.
    """
    storage = read_storage(path)
    reader = open_reader(path, READERS[path.suffix])
    dtype, components = pixel_type(reader.GetPixelID(), path), reader.GetNumberOfComponents()
    shape = (*reader.GetSize(), *[components] * (components > 1))
    affine = LPS_TO_RAS @ _affine(path, reader)
    require_possible(path, storage, math.prod(shape) * dtype.itemsize)
    read = partial(_read_stored, path, storage, math.prod(shape) * dtype.itemsize)
    return ImageFile(path, shape, affine, dtype, 1.0, 0.0, None, read)


def write_itk(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write (X, Y, Z), or (X, Y, Z, K) as voxels of K components, compressed, in the format of the name's ending.

    `affine` (4, 4) is voxel -> mm in RAS. Each file is complete or absent. A separate voxel file appears before its
    header. Raise InputError if the folder cannot be written to, or if the axes need directions in a .gipl file, which
    stores none.
    """
    lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction = lps[:3, :3] / spacing
    if path.suffix == ".gipl" and not np.allclose(direction, np.eye(3), atol=1e-6):
        raise InputError(f"{path}: .gipl keeps no directions of axes; another file_ending expected")
    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0, *range(3, array.ndim)), isVector=array.ndim == 4)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(direction.ravel().tolist())
    if path.suffix not in WITHOUT_VOXELS:
        with atomic_path(path) as temporary:
            _write(image, temporary, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The header names the voxel file, so both need their final names: they are written in a temporary folder.
    with TemporaryDirectory(dir=path.parent, prefix=TEMPORARY) as folder:
        _write(image, Path(folder, path.name), path)
        for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            file.replace(path.parent / file.name)


def open_reader(path: Path, kind: str) -> Any:
    """Return SimpleITK's reader of this kind with the header read; raise InputError if the file is of another kind."""
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(kind)
    reader.SetFileName(str(path))
    with naming_itk_errors(path):
        reader.ReadImageInformation()
    return reader


def pixel_type(pixel: int, path: Path) -> np.dtype:
    """Return the NumPy type of a SimpleITK pixel type; raise InputError naming the image if it is not numeric."""
    components = [] if "vector" not in SimpleITK.GetPixelIDValueAsString(pixel) else [2]
    dtype = SimpleITK.GetArrayViewFromImage(SimpleITK.Image([1, 1], pixel, *components)).dtype
    if dtype.kind not in "iuf":
        raise InputError(f"{path}: voxels of type {dtype}, numbers expected")
    return dtype


def flat_voxels(image: Any) -> np.ndarray:
    """Return all voxels of a SimpleITK image in file order (x fastest), components last: (X * Y * Z * C,)."""
    array = SimpleITK.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    return array.reshape(-1)


@contextmanager
def naming_itk_errors(path: Path) -> Iterator[None]:
    """Turn SimpleITK's errors about an image into an InputError that names it."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            f"{path}: cannot be read as an image, one that SimpleITK reads expected: cut off, damaged or of another "
            f"kind ({_reason(error)})"
        ) from error


def _affine(path: Path, reader: Any) -> np.ndarray:
    """Return the matrix (4, 4) from voxel to mm in LPS, for the first three axes."""
    axes = reader.GetDimension()
    spacing = np.array(reader.GetSpacing())
    direction = np.array(reader.GetDirection()).reshape(axes, axes)
    if axes >= 3 and not (spacing[:3] > 0).all():
        raise InputError(f"{path}: voxels of {spacing[:3].tolist()} mm, three sizes above 0 expected")
    affine = np.eye(4)
    kept = min(axes, 3)
    affine[:kept, :kept] = direction[:kept, :kept] * spacing[:kept]
    affine[:kept, 3] = reader.GetOrigin()[:kept]
    return affine


def _write(image: Any, place: Path, path: Path) -> None:
    """Write to `place` the image that is later moved to `path`. If ITK fails (disk full), InputError names `path`."""
    try:
        SimpleITK.WriteImage(image, str(place), useCompression=True)
    except RuntimeError as error:
        text = f"{path}: cannot be written ({_reason(error)}); free space and the permission to write expected"
        raise InputError(text) from error


def _reason(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].removeprefix("sitk::ERROR: ")


def _read_stored(path: Path, storage: VoxelStorage, num_bytes: int) -> np.ndarray:
    require_whole(path, storage, num_bytes)
    with naming_itk_errors(path):
        return flat_voxels(SimpleITK.ReadImage(str(path), imageIO=READERS[path.suffix]))
