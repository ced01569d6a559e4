"""The box and the mask of nonzero voxels: what lies outside the object is neither resampled nor counted."""

from __future__ import annotations

import numpy as np

from e2enet.common.errors import InputError

Box = tuple[slice, slice, slice]


def crop_to_nonzero(array: np.ndarray) -> Box:
    """The smallest box of (D, H, W) outside which every channel of (C, D, H, W) is zero. InputError where all
    is zero."""
    nonzero = np.any(array != 0, axis=0)
    if not nonzero.any():
        raise InputError("the image is zero everywhere")
    parts = []
    for axis in range(3):
        occupied = np.flatnonzero(nonzero.any(axis=tuple(other for other in range(3) if other != axis)))
        parts.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return parts[0], parts[1], parts[2]


def nonzero_mask(array: np.ndarray) -> np.ndarray:
    """True where any channel of (C, D, H, W) is nonzero, and in holes that this encloses (dark ventricles are
    inside)."""
    from scipy.ndimage import binary_fill_holes

    return binary_fill_holes(np.any(array != 0, axis=0))
