"""An image file as it is stored: header facts and unscaled voxels.

Training reads scans as float32 in the frame (`volume`). That makes four copies more than the check of a dataset needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from e2enet.data.formats.forms import SpacingConflict, forms_offset, spacing_conflict
from e2enet.data.formats.grid import Geometry, Offset, Unit, geometry_of, unit_of_length
from e2enet.data.formats.image_file import ImageFile
from e2enet.data.formats.opening import open_image

CHUNK_VOXELS = 2**22
Extent = tuple[np.ndarray, np.ndarray, np.ndarray]  # of bool, along X, Y and Z


@dataclass(frozen=True, eq=False)
class StoredHeader:
    """The content of a file's header.

    Attributes:
        path: The file.
        geometry: Shape, affine and the file's own axis of largest spacing.
        channels: Size of the channel axis; 1 if there is none.
        dtype: Type of the voxels on disk.
        slope, intercept: value = slope * stored + intercept.
        unit: Unit of length in the header; `geometry` is in mm.
        forms: Offset between sform and qform; None unless both are set and the sform is in use.
        conflict: Voxel sizes of an sform and a pixdim that contradict each other; None if they agree.
    """

    path: Path
    geometry: Geometry
    channels: int
    dtype: np.dtype
    slope: float
    intercept: float
    unit: str
    forms: Offset | None
    conflict: SpacingConflict | None

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
        """Yield the scaled values in pieces, as training sees them: whole numbers, or float32 if scaled or floats."""
        for start in range(0, self.voxels.size, CHUNK_VOXELS):
            yield self._scaled(self.voxels[start : start + CHUNK_VOXELS])

    def planes(self) -> Iterator[np.ndarray]:
        """Yield the scaled values in planes (Y, X) of the file's axes: Z planes for each channel in turn."""
        width, height, _ = self.header.geometry.shape
        for plane in self.voxels.reshape(-1, height, width):
            yield self._scaled(plane)

    def nonzero_extent(self) -> Extent:
        """Return along each of the file's axes where a voxel of any channel is not 0."""
        width, height, depth = self.header.geometry.shape
        x, y, z = (np.zeros(size, bool) for size in (width, height, depth))
        for number, plane in enumerate(self.planes()):
            nonzero = plane != 0
            x |= nonzero.any(axis=0)
            y |= nonzero.any(axis=1)
            z[number % depth] |= bool(nonzero.any())
        return x, y, z

    def _scaled(self, stored: np.ndarray) -> np.ndarray:
        if (self.header.slope, self.header.intercept) != (1, 0):
            stored = stored * self.header.slope + self.header.intercept
        # Values beyond the range of float32 become infinite, as they do for training.
        with np.errstate(over="ignore"):
            return stored.astype(np.float32) if stored.dtype.kind == "f" else stored

    def digest(self) -> bytes:
        """Return a hash of the values as float32.

        It is equal for files of the same values, whatever their names, headers, stored types, and order and direction
        of axes. It covers the sums of scrambled voxels over planes along each axis, read from the end that sorts first.
        """
        width, height, depth = self.header.geometry.shape
        sums = [np.zeros((self.header.channels, size), np.uint64) for size in (width, height, depth)]
        for number, plane in enumerate(self.planes()):
            channel, z = divmod(number, depth)
            voxels = _scramble(plane)
            rows = voxels.sum(axis=1)
            sums[0][channel] += voxels.sum(axis=0)
            sums[1][channel] += rows
            sums[2][channel, z] = rows.sum()
        axes = sorted(min(along.tobytes(), along[:, ::-1].tobytes()) for along in sums)
        return hashlib.blake2b(b"".join(axes), digest_size=16).digest()


def _scramble(values: np.ndarray) -> np.ndarray:
    """Return 64 scrambled bits for each value as float32, so that sums distinguish values. Both 0 and -0 give 0."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64)
    bits *= np.uint64(0x9E3779B97F4A7C15)
    bits ^= bits >> np.uint64(29)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    return bits


def read_stored_header(path: Path, unit: Unit | None = None) -> StoredHeader:
    """Read the header alone; raise InputError, as `volume.read_geometry` does, if it cannot be used."""
    return _stored_header(open_image(path, unit))


def read_stored(path: Path, unit: Unit | None = None) -> StoredImage:
    """Read header and voxels; raise InputError if either cannot be read or the gzip stream is cut off or damaged.

    Memory: the stored voxels once.
    """
    image = open_image(path, unit)
    return StoredImage(_stored_header(image), image.read_stored())


def _stored_header(image: ImageFile) -> StoredHeader:
    geometry, channels = geometry_of(image, None), int(np.prod(image.shape[3:]))
    kind = image.dtype, image.slope, image.intercept
    said = unit_of_length(image.header), forms_offset(image), spacing_conflict(image.header)
    return StoredHeader(image.path, geometry, channels, *kind, *said)
