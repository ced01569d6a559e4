"""Dice, normalised surface Dice and the 95th-percentile Hausdorff distance of two binary masks.

Both masks must be non-empty; `scores.py` decides how an empty mask is scored. The surface of a mask is its voxels with
a background neighbour across a face. Outside the image is background.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# Spacings come from float32 headers: 1.0000001 mm must not put the next voxel beyond a tolerance of 1 mm.
TOLERANCE_SLACK_MM = 1e-4


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice coefficient 2 |P and R| / (|P| + |R|) of two bool masks of one shape."""
    _check_masks(prediction, reference)
    overlap = np.count_nonzero(prediction & reference)
    return 2 * overlap / (np.count_nonzero(prediction) + np.count_nonzero(reference))


def nsd(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float = 1.0) -> float:
    """Normalised surface Dice: share of both surfaces that lies within `tolerance` mm of the other surface.

    `spacing` is in mm per axis of the masks. Defined by Nikolov et al. 2018 (arXiv 1809.04430). Surface voxels are
    counted as by MONAI's `compute_surface_dice`.
    """
    _check_masks(prediction, reference)
    return surface_distances(*crop_to_union(prediction, reference), spacing).nsd(tolerance)


def hd95(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float:
    """The larger of the two directed 95th percentiles of the surfaces' distances, in mm."""
    _check_masks(prediction, reference)
    return surface_distances(*crop_to_union(prediction, reference), spacing).hd95()


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Distances in mm, float32, of each surface voxel of a mask to the other mask's surface.

    `there` has the voxels of the prediction, `back` those of the reference.
    """

    there: torch.Tensor
    back: torch.Tensor

    def nsd(self, tolerance: float) -> float:
        """See `nsd`; the same bits as MONAI's `compute_surface_dice`."""
        threshold = float(tolerance) + TOLERANCE_SLACK_MM
        within = (self.there <= threshold).sum() + (self.back <= threshold).sum()
        return float(within / (len(self.there) + len(self.back)))

    def hd95(self) -> float:
        """See `hd95`; the same bits as MONAI's `compute_hausdorff_distance`."""
        return max(float(distances.quantile(0.95)) for distances in (self.there, self.back))


def surface_distances(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Measure the surfaces of two masks that are not empty. Masks that were cropped to their union take least time."""
    import torch
    from monai.metrics.utils import get_edge_surface_distance  # the import takes seconds

    first, second = (torch.from_numpy(mask.copy()) for mask in (prediction, reference))
    with _without_deprecation_notes():
        _, distances, _ = get_edge_surface_distance(first, second, spacing=_floats(spacing), symmetric=True)
    return SurfaceDistances(distances[0], distances[-1])


def crop_to_union(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crop both masks to the bounding box of their union.

    The surface voxels stay the same: only background is cut away, and outside an image is background too.
    """
    union = prediction | reference
    box = []
    for axis in range(union.ndim):
        others = tuple(other for other in range(union.ndim) if other != axis)
        filled = np.flatnonzero(union.any(axis=others))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return prediction[tuple(box)], reference[tuple(box)]


@contextmanager
def _without_deprecation_notes() -> Iterator[None]:
    """Silence MONAI 1.6's warning about an argument that only MONAI itself passes (always_return_as_numpy)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        yield


def _floats(spacing: Sequence[float]) -> list[float]:
    return [float(value) for value in spacing]


def _check_masks(prediction: np.ndarray, reference: np.ndarray) -> None:
    if prediction.shape != reference.shape:
        raise ValueError(f"masks differ in shape: prediction {prediction.shape}, reference {reference.shape}")
    if prediction.dtype != bool or reference.dtype != bool:
        raise ValueError(f"masks must be bool, not {prediction.dtype} and {reference.dtype}")
    if not prediction.any() or not reference.any():
        raise ValueError("an empty mask has no surface: see e2enet.evaluation.scores for what it counts")
