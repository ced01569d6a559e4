"""A volume on disk in any format, with its header read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class ImageFile:
    """The content of a header, and how to read the voxels.

    Attributes:
        path: The file, or the folder of a DICOM series.
        shape: (X, Y, Z), or (X, Y, Z, .., C) with further axes.
        affine: (4, 4), voxel -> mm in RAS.
        dtype: Type of the stored voxels.
        slope, intercept: value = slope * stored + intercept.
        header: The NIfTI header; None for other formats, whose lengths are in mm.
        read_stored: Returns all stored voxels, unscaled, in file order (x fastest): (X * Y * Z * C,). Raises InputError
            naming the file if they are not complete.
    """

    path: Path
    shape: tuple[int, ...]
    affine: np.ndarray
    dtype: np.dtype
    slope: float
    intercept: float
    header: Any
    read_stored: Callable[[], np.ndarray]

    @property
    def squeezed_shape(self) -> tuple[int, ...]:
        """(X, Y, Z) or (X, Y, Z, C): without further axes of length 1, such as the time of (X, Y, Z, 1, C)."""
        return tuple(int(size) for axis, size in enumerate(self.shape) if axis < 3 or size != 1)

    @property
    def num_bytes(self) -> int:
        """Size of the stored voxels in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_scaled(self) -> bool:
        """Whether the values differ from the stored ones."""
        return (self.slope, self.intercept) != (1, 0)

    def read_unscaled(self) -> np.ndarray:
        """Return the stored voxels in `squeezed_shape`."""
        return self.read_stored().reshape(self.squeezed_shape, order="F")

    def read_values(self) -> np.ndarray:
        """Return the values in `squeezed_shape`: as stored, or in double precision if the header has a scale."""
        stored = self.read_unscaled()
        return stored * self.slope + self.intercept if self.is_scaled else stored
