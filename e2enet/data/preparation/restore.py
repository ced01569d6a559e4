"""A network's result on its way back to the scan's own grid, plane by plane.

Linear interpolation goes axis by axis: each plane that the network's side hands on is resampled in itself, and a plane
of the scan is then mixed from the two that it lies between. So no more is held than two planes of all classes and the
label map: 16 classes of 512 x 512 x 400 voxels would be 6.7 GB at once.
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

    Planes come in order and are resampled linearly; a coarse axis is taken apart, as in `separate_axis`, by the nearest
    slice. Outside the crop is background. `on_plane` is called with every plane of the original grid, in order: its
    probabilities (K, H, W) float32, outside the crop those of certain background. `order` is of a network that was
    trained by regions.
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
    """The planes (K, H', W') of the crop's own grid, in order, from those (K, h, w) of the network's."""
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
    """(K, h, w) to `size` (H', W') linearly; axis 1 or 2 (H or W), where it is the separate one, by the nearest row or
    column."""
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
    if not order:  # else background is where no region is
        plane[0] = 1
    return plane
