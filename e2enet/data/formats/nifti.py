"""A NIfTI file as it is on disk: its header, if it is plausible, and its stored voxels.

nibabel reads headers. But it stops at the last voxel, before the checksum that ends a gzip stream, so a damaged scan
would pass. It also replaces voxel sizes that are zero or negative by values that nobody measured. Here both are errors,
except that an sform gives the voxel sizes if they are missing.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from e2enet.common.errors import InputError
from e2enet.data.formats.forms import header_affine, spacing_conflict
from e2enet.data.formats.grid import in_millimetres
from e2enet.data.formats.image_file import ImageFile

CHUNK_BYTES = 2**20
# Deflate cannot compress more (zlib's own figure). If a header promises more, the file does not hold its voxels.
MAX_COMPRESSION = 1032


def open_nifti(path: Path) -> ImageFile:
    """Open a NIfTI file without reading its voxels; raise InputError if it is none or its voxels are no numbers."""
    try:
        image: Any = nib.load(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # a damaged header makes nibabel raise anything, and it is always the file's fault
        raise InputError(
            f"{path}: cannot be read as an image, a NIfTI file expected: cut off, damaged or of another kind ({error})"
        ) from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is one of these
        raise InputError(f"{path}: {type(image).__name__}, a NIfTI image expected")
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: voxels of type {image.get_data_dtype()}, numbers expected")
    affine = placed_affine(image, path)
    size = path.stat().st_size
    if _num_bytes(image) > size * (MAX_COMPRESSION if _is_packed(path) else 1):
        raise cut_off(path, f"{_num_bytes(image)} bytes of voxels expected, the file has {size}")
    proxy: Any = image.dataobj
    scale = float(proxy.slope), float(proxy.inter)
    return ImageFile(path, image.shape, affine, proxy.dtype, *scale, image.header, partial(_read_stored, image, path))


def placed_affine(image: Any, path: Path) -> np.ndarray:
    """Return the affine of a loaded NIfTI image, voxel -> mm, see `header_affine`.

    Raise InputError if voxel sizes (pixdim) are zero, negative or not finite. With an sform they are not an error: the
    loaded header then gets those of the sform, so that files made with it are read alike.
    """
    header = image.header
    has_sform = int(header["sform_code"]) > 0
    if not has_sform or spacing_conflict(header) is not None:
        with ImageOpener(str(image.file_map.get("header", image.file_map["image"]).filename)) as stream:
            unmended = type(header).from_fileobj(stream, check=False)
        spacing = [float(size) for size in unmended["pixdim"][1:4]]
        if not all(math.isfinite(size) and size > 0 for size in spacing):
            if not has_sform:
                raise InputError(f"{path}: voxels of {spacing} mm (pixdim), three sizes above 0 expected")
            header["pixdim"][1:4] = np.linalg.norm(header.get_sform()[:3, :3], axis=0)
    return in_millimetres(header_affine(header), header)


def without_history(header: Any) -> Any:
    """Copy a NIfTI header without extensions and texts (descrip, aux_file, intent_name, db_name ..).

    They describe the scan and may hold names and history, so files made from a scan must not have them. Other headers
    are copied unchanged.
    """
    header = header.copy()
    if isinstance(header, nib.Nifti1Header):  # Nifti2Header is one of these
        header.extensions.clear()
        for name in header:
            if header[name].dtype.kind == "S" and name != "magic":
                header[name] = b""
    return header


def _read_stored(image: Any, path: Path) -> np.ndarray:
    """Return all stored voxels of an open image, see `ImageFile.read_stored`.

    Raise InputError if the file is too short, or its gzip stream is cut off or damaged anywhere. Memory: the stored
    voxels once.
    """
    proxy = image.dataobj
    num_bytes, packed = _num_bytes(image), _is_packed(path)
    buffer = np.empty(num_bytes, np.uint8)
    with naming_cut_off(path), gzip.open(path) if packed else path.open("rb") as stream:
        stream.seek(proxy.offset)
        _fill(stream, buffer.data, path)
        while packed and stream.read(CHUNK_BYTES):
            pass  # to the end of the stream, where length and checksum are compared
    return buffer.view(proxy.dtype)


def _num_bytes(image: Any) -> int:
    """Return the bytes of all stored voxels."""
    return math.prod(image.shape) * int(image.dataobj.dtype.itemsize)


def _is_packed(path: Path) -> bool:
    return path.name.endswith(".gz")


def _fill(stream: BufferedIOBase, view: memoryview, path: Path) -> None:
    done = 0
    while done < len(view):
        count = stream.readinto(view[done : done + CHUNK_BYTES])
        if not count:
            raise cut_off(path, f"{len(view)} bytes of voxels expected, {done} found")
        done += count


@contextmanager
def naming_cut_off(path: Path) -> Iterator[None]:
    """Turn errors in reading or unpacking voxels into an InputError that names the file."""
    try:
        yield
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not gzip's own
            raise InputError(f"{path}: cannot be read ({error.strerror}); a readable file expected") from error
        raise cut_off(path, str(error)) from error


def cut_off(path: Path, reason: str) -> InputError:
    """Return the error for a file that does not hold the voxels that its header promises."""
    return InputError(f"{path}: the voxels cannot be read, the file may be cut off ({reason}): a whole file expected")
