"""Restores a network's result to the scan's original grid, plane by plane.

Linear interpolation is separable: each plane of the network's grid is resampled in-plane, and each plane of the scan is
interpolated between the two planes around it. So memory holds only two planes of all classes and the label map. All
planes of 16 classes of 512 x 512 x 400 voxels would take 6.7 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from e2enet.data.preparation.outputs import segment_plane
from e2enet.data.preparation.preprocess import Preprocessed
from e2enet.data.preparation.resample import nearest_indices, separate_axis
from e2enet.data.preparation.resample_labels import Neighbours

OnPlane = Callable[[np.ndarray], None]


def restore_labels(
    planes: Iterable[Tensor], prepared: Preprocessed, on_plane: OnPlane | None = None, *, order: Sequence[int] = ()
) -> np.ndarray:
    """Labels on the original grid (`segment_plane`): d planes (K, h, w) of probabilities -> (D, H, W) uint8 or int16.

    Planes come in order and are resampled linearly. Along a coarse axis, see `separate_axis`, the nearest slice is
    taken. Outside the crop is background. `on_plane` is called with the probabilities (K, H, W) float32 of every plane
    of the original grid, in order. Outside the crop they are those of certain background. `order` is that of a network
    trained on regions.
    """
    restored = resample_planes(planes, prepared)
    first = next(restored)
    inside = chain([first], restored)
    num_classes = len(first)
    highest = max(order, default=num_classes - 1)
    labels = np.zeros(prepared.original_shape, dtype=np.uint8 if highest <= 255 else np.int16)
    depths, rows, columns = prepared.crop
    for depth, target in enumerate(labels):
        if not depths.start <= depth < depths.stop:
            if on_plane is not None:
                on_plane(_background(num_classes, target.shape, order))
            continue
        plane = next(inside)
        target[rows, columns] = segment_plane(plane, order).cpu().numpy()
        if on_plane is not None:
            whole = _background(num_classes, target.shape, order)
            whole[:, rows, columns] = plane.cpu().numpy()
            on_plane(whole)
    return labels


def resample_planes(planes: Iterable[Tensor], prepared: Preprocessed) -> Iterator[Tensor]:
    """Yield the planes (K, H', W') of the crop's original grid, in order, from the network's planes (K, h, w)."""
    axis = separate_axis(prepared.spacing, prepared.original_spacing)
    old, (new, *size) = prepared.image.shape[1], prepared.cropped_shape
    if axis == 0:
        nearest = nearest_indices(old, new)
        depths = Neighbours(nearest, nearest, np.zeros(new))
    else:
        depths = Neighbours.along(old, new)
    source = enumerate(planes)
    held: dict[int, Tensor] = {}
    for first, second, share in zip(depths.first, depths.second, depths.share, strict=True):
        last = first if share == 0 else second
        held = {index: plane for index, plane in held.items() if index >= first}
        while last not in held:
            index, plane = next(source)
            if index >= first:
                held[index] = _resample_plane(plane, size, axis)
        yield held[first] if share == 0 else torch.lerp(held[first], held[second], float(share))


def _resample_plane(plane: Tensor, size: Sequence[int], axis: int | None) -> Tensor:
    """Resample (K, h, w) to `size` (H', W') linearly; along a separate axis 1 or 2 (H or W) take the nearest line."""
    old = plane.shape[1:]
    linear = [
        before if index == axis else after for index, (before, after) in enumerate(zip(old, size, strict=True), 1)
    ]
    if linear != list(old):
        plane = interpolate(plane[None], size=linear, mode="bilinear", align_corners=False)[0]
    if axis in (1, 2) and size[axis - 1] != old[axis - 1]:
        picked = nearest_indices(old[axis - 1], size[axis - 1])
        plane = plane.index_select(axis, torch.from_numpy(picked).to(plane.device))
    return plane


def _background(num_classes: int, shape: Sequence[int], order: Sequence[int]) -> np.ndarray:
    plane = np.zeros((num_classes, *shape), dtype=np.float32)
    if not order:  # with regions, background is where no region is
        plane[0] = 1
    return plane
