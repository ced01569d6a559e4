"""Spool the probabilities of a whole scan to a temporary file for its .npz, since they would fill the memory.

The planes come in the order of the frame. The .npz needs the scan's own axes, class after class. The spool stores the
planes as float16 in a file beside the result. Then one class at a time is turned to the native grid and compressed.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from e2enet.common.files import TEMPORARY, atomic_path
from e2enet.data.formats.grid import Geometry
from e2enet.data.formats.volume import to_native

KEY = "probabilities"


@contextmanager
def spool_probabilities(folder: Path) -> Iterator[ProbabilitySpool]:
    """Yield a spool with a file in `folder` (created if missing); the file is removed when the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    # On most systems the file has no name, so nothing remains if the process is killed.
    with tempfile.TemporaryFile(dir=folder, prefix=TEMPORARY) as file:
        yield ProbabilitySpool(file)


class ProbabilitySpool:
    """Planes (K, H, W) of the frame, in order along D, in a file opened for writing and reading."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._shape: tuple[int, ...] = ()
        self._planes = 0

    def add(self, plane: np.ndarray) -> None:
        """Append a plane (K, H, W), rounded to float16."""
        self._file.write(np.ascontiguousarray(plane, dtype=np.float16).data)
        self._shape = plane.shape
        self._planes += 1

    def write(self, path: Path, geometry: Geometry) -> None:
        """Write an .npz with key "probabilities", float16 (K, X, Y, Z) on the native grid; complete or not at all.

        The format is that of `numpy.savez_compressed`.
        """
        shape = (self._shape[0], *geometry.shape)
        header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": shape}
        with (
            atomic_path(path) as temporary,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open(f"{KEY}.npy", "w", force_zip64=True) as member,
        ):
            np.lib.format.write_array_header_1_0(member, header)
            for value in range(shape[0]):
                member.write(to_native(self._read_class(value), geometry).data)

    def _read_class(self, value: int) -> np.ndarray:
        """Read the planes (D, H, W) of one class."""
        classes, height, width = self._shape
        result = np.empty((self._planes, height, width), dtype=np.float16)
        for depth, plane in enumerate(result):
            self._file.seek((depth * classes + value) * plane.nbytes)
            plane[...] = np.frombuffer(self._file.read(plane.nbytes), dtype=np.float16).reshape(plane.shape)
        return result
