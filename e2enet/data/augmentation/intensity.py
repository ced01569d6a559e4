"""Intensity changes, in place, on many channels at once: the same code in a worker and on the training device.

Every function takes rows and the strength of each row. Rows are float32 (N, D, H, W), each a channel of some patch.
Nothing here waits for the device. The images are normalised (about zero mean, unit variance), so every function handles
negative values. A recipe sets ranges, order and probabilities: conf/augmentation/nnunet.yaml has those of nnU-Net
(Isensee et al. 2021, supplement 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Change = Callable[[Tensor, Sequence[float]], None]

SPATIAL_DIMS = (1, 2, 3)
TRUNCATE = 4  # the Gaussian is cut off at this many standard deviations, as in SciPy
SMALLEST_RANGE = 1e-6  # a channel that varies less counts as constant


def multiply(rows: Tensor, factors: Sequence[float]) -> None:
    """Brightness: multiply every value by the row's factor."""
    rows.mul_(per_row(factors, rows))


def scale_contrast(rows: Tensor, factors: Sequence[float]) -> None:
    """Spread the values around their mean by the factor, clipped to the range they had before."""
    mean, low, high = (reduce(SPATIAL_DIMS, keepdim=True) for reduce in (rows.mean, rows.amin, rows.amax))
    rows.sub_(mean).mul_(per_row(factors, rows)).add_(mean)
    torch.clamp(rows, low, high, out=rows)


def blur(rows: Tensor, sigmas: Sequence[float]) -> None:
    """Gaussian blur with sigma > 0 in voxels; images are mirrored at their borders."""
    _mix_along_axes(rows, sigmas, blur_matrix, SPATIAL_DIMS)


def lower_resolution(rows: Tensor, zooms: Sequence[float]) -> None:
    """Simulate a coarser scan: nearest-neighbour sampling to `zoom` times the size, then back linearly.

    nnU-Net goes back by cubic splines. Linear interpolation is several times faster and the result is as coarse.
    """
    _mix_along_axes(rows, zooms, coarsening_matrix, SPATIAL_DIMS)


def lower_resolution_in_plane(rows: Tensor, zooms: Sequence[float]) -> None:
    """`lower_resolution` within the slices (H, W), for patches that are coarse in depth already."""
    _mix_along_axes(rows, zooms, coarsening_matrix, SPATIAL_DIMS[1:])


def change_gamma(rows: Tensor, gammas: Sequence[float]) -> None:
    """Raise each row, scaled to 0..1, to the power gamma; then restore its mean and standard deviation."""
    mean, low, high = (reduce(SPATIAL_DIMS, keepdim=True) for reduce in (rows.mean, rows.amin, rows.amax))
    deviation = _deviation(rows, mean)
    rows.sub_(low).div_((high - low).clamp_min(SMALLEST_RANGE)).pow_(per_row(gammas, rows))
    rows.sub_(rows.mean(SPATIAL_DIMS, keepdim=True))
    # A constant row is 0 here, and so is its deviation: adding the mean restores it.
    rows.mul_(deviation / _deviation(rows, 0).clamp_min(SMALLEST_RANGE)).add_(mean)


def change_gamma_inverted(rows: Tensor, gammas: Sequence[float]) -> None:
    """`change_gamma` of the negative image: bends the bright end instead of the dark one."""
    change_gamma(rows.neg_(), gammas)
    rows.neg_()


def per_row(values: Sequence[float], rows: Tensor) -> Tensor:
    """One number per row, (N, 1, 1, 1) on the rows' device; the host does not wait for the copy."""
    return torch.tensor(values, dtype=rows.dtype).view(-1, 1, 1, 1).to(rows.device, non_blocking=True)


def blur_matrix(size: int, sigma: float) -> Tensor:
    """Gaussian blur of a line of voxels as a matrix (size, size): row o holds the weights of all voxels for voxel o.

    The line is mirrored at its ends: a, b, c is read as .. b a a b c c b ..
    """
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    to_and_fro = (torch.arange(size)[:, None] + offsets) % (2 * size)
    voxels = torch.minimum(to_and_fro, 2 * size - 1 - to_and_fro)
    return torch.zeros(size, size).scatter_add_(1, voxels, (weights / weights.sum()).expand(size, -1))


def coarsening_matrix(size: int, zoom: float) -> Tensor:
    """Matrix that samples a line of voxels to `zoom` times its size (nearest neighbour) and back (linear)."""
    coarse = max(1, round(size * zoom))
    each_voxel = torch.eye(size)[None]
    small = functional.interpolate(each_voxel, size=coarse, mode="nearest-exact")
    return functional.interpolate(small, size=size, mode="linear", align_corners=False)[0].T


def _mix_along_axes(
    rows: Tensor, strengths: Sequence[float], matrix: Callable[[int, float], Tensor], axes: Sequence[int]
) -> None:
    """Multiply each row along each axis by its own `matrix(size, strength)`.

    Dense products, mostly with zeros, are faster here than convolutions, and handle rows of different strength at once.
    """
    for axis in axes:
        size = rows.shape[axis]
        matrices = torch.stack([matrix(size, strength) for strength in strengths]).to(rows.device, non_blocking=True)
        if axis == 1:
            rows.copy_((matrices @ rows.flatten(2)).view_as(rows))
        elif axis == 2:
            rows.copy_(matrices[:, None] @ rows)
        else:
            rows.copy_(rows @ matrices.mT[:, None])


def _deviation(rows: Tensor, mean: Tensor | float) -> Tensor:
    # Several times as fast as torch.std, which goes through the voxels one by one.
    return (rows - mean).square_().mean(SPATIAL_DIMS, keepdim=True).sqrt_()
