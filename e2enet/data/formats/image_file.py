"""A volume on disk of which the header was read, whatever its format."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class ImageFile:
    """What a header says, and how to read the voxels.

    Attributes:
        path: The file, or the folder of a DICOM series.
        shape: (X, Y, Z), or (X, Y, Z, .., C) where there are further axes.
        affine: (4, 4), voxel -> mm in RAS.
        dtype: Of the stored voxels.
        slope, intercept: value = slope * stored + intercept.
        header: The NIfTI header; None of other formats, whose lengths are in mm.
        read_stored: All stored voxels, unscaled, in file order (x fastest): (X * Y * Z * C,). InputError naming the
            file where they cannot be had whole.
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
    def num_bytes(self) -> int:
        """Size of the stored voxels in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_scaled(self) -> bool:
        """Whether values are others than those stored."""
        return (self.slope, self.intercept) != (1, 0)

    def read_unscaled(self) -> np.ndarray:
        """The stored voxels in the image's own shape."""
        return self.read_stored().reshape(self.shape, order="F")

    def read_values(self) -> np.ndarray:
        """The same, scaled as the header says: whole numbers, or double precision where there is a scale."""
        stored = self.read_unscaled()
        return stored * self.slope + self.intercept if self.is_scaled else stored
