"""A NIfTI file as it is stored: header facts and unscaled voxels, the whole stream verified.

Training reads scans as float32 in the frame (`volume`). To look through a dataset that is four copies too many, and
nibabel stops reading at the last voxel, before the checksum that ends a gzip stream.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from e2enet.common.errors import InputError
from e2enet.data.formats.volume import Geometry, geometry_of, open_image

CHUNK_VOXELS = 2**22
CHUNK_BYTES = 2**20
# Deflate cannot pack tighter (zlib's own figure): a header that promises more has no such voxels behind it.
MOST_COMPRESSION = 1032


@dataclass(frozen=True, eq=False)
class StoredHeader:
    """What a file's header says.

    Attributes:
        path: The file.
        geometry: Shape, affine and the file's own axis of largest spacing.
        channels: Size of the fourth axis, 1 where there is none.
        dtype: Of the voxels on disk.
        offset: Bytes before the first voxel.
        slope, intercept: value = slope * stored + intercept.
    """

    path: Path
    geometry: Geometry
    channels: int
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float

    @property
    def num_bytes(self) -> int:
        """Size of the voxels in memory."""
        return int(np.prod(self.geometry.shape)) * self.channels * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class StoredImage:
    """A header and its voxels: `voxels` is (X * Y * Z * C,) in file order (x fastest), unscaled."""

    header: StoredHeader
    voxels: np.ndarray

    def values(self) -> Iterator[np.ndarray]:
        """The scaled values, a piece at a time, as training sees them: whole numbers, or float32 after scaling."""
        scaled = (self.header.slope, self.header.intercept) != (1, 0)
        for start in range(0, self.voxels.size, CHUNK_VOXELS):
            piece = self.voxels[start : start + CHUNK_VOXELS]
            if scaled:
                piece = piece * self.header.slope + self.header.intercept
            # Beyond the range of float32 values become infinite, as they do for training.
            with np.errstate(over="ignore"):
                yield piece.astype(np.float32) if piece.dtype.kind == "f" else piece

    def digest(self) -> bytes:
        """Hash of the stored voxels: equal for files with the same voxels, whatever their names and headers."""
        return hashlib.blake2b(self.voxels.view(np.uint8).data, digest_size=16).digest()


def read_stored_header(path: Path) -> StoredHeader:
    """The header alone; InputError, as from `volume.read_geometry`, where it cannot be used."""
    image = open_image(path)
    geometry = geometry_of(image, path, None)
    proxy = image.dataobj
    channels = int(np.prod(image.shape[3:]))
    return StoredHeader(path, geometry, channels, proxy.dtype, proxy.offset, float(proxy.slope), float(proxy.inter))


def read_stored(path: Path) -> StoredImage:
    """Header and voxels; InputError where either cannot be read or the gzip stream is cut off or damaged.

    Memory: the stored voxels once.
    """
    header = read_stored_header(path)
    packed = path.name.endswith(".gz")
    if header.num_bytes > path.stat().st_size * (MOST_COMPRESSION if packed else 1):
        raise _cut_off(path, f"{header.num_bytes} bytes of voxels expected, the file has {path.stat().st_size}")
    buffer = np.empty(header.num_bytes, np.uint8)
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            stream.seek(header.offset)
            _fill(stream, buffer.data, path)
            while packed and stream.read(CHUNK_BYTES):
                pass  # to the end of the stream, where length and checksum are compared
    except (OSError, EOFError, zlib.error) as error:
        raise _cut_off(path, str(error)) from error
    return StoredImage(header, buffer.view(header.dtype))


def _fill(stream: BufferedIOBase, view: memoryview, path: Path) -> None:
    done = 0
    while done < len(view):
        count = stream.readinto(view[done : done + CHUNK_BYTES])
        if not count:
            raise _cut_off(path, f"{len(view)} bytes of voxels expected, {done} found")
        done += count


def _cut_off(path: Path, reason: str) -> InputError:
    return InputError(f"{path}: the voxels cannot be read, the file may be cut off ({reason})")
