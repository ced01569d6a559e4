"""Rotation, scaling and mirroring of a patch, drawn before the patch is read, so that just enough is read for it.

A patch rotated within itself has empty corners. So a larger box of `box_size` voxels around the same centre is read,
and `rotate_scale` samples the patch from it. Only rotated or scaled patches need the larger read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from e2enet.data.augmentation.step import AugmentationStep, Patch, Triple, is_anisotropic, require_range, uniform

# (3, 3) in the order D, H, W: output voxel o reads the input at `matrix @ o`, both relative to their centre.
Matrix = Sequence[Sequence[float]]


def rotate_scale(image: Tensor, label: Tensor, matrix: Matrix, patch_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Sample a patch from a box around the same centre, through a linear map in voxels.

    The map ignores the anisotropy of the voxels, as in nnU-Net. The image is interpolated linearly, and the label takes
    the nearest voxel. nnU-Net uses cubic splines, which take some twenty times as long here, and interpolates each
    label separately. Outside the box values are 0.

    Args:
        image: float32 (C, d, h, w), the box.
        label: One map (d, h, w) or several (M, d, h, w), of any integer type.
        matrix: See `Matrix`.
        patch_size: Output size in voxels (D, H, W).

    Returns:
        Image (C, D, H, W) and label (D, H, W) or (M, D, H, W), in their original types.
    """
    grid = _grid(matrix, patch_size, image.shape[1:], image.device)
    turned = functional.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    nearest = functional.grid_sample(
        label.reshape(1, -1, *label.shape[-3:]).to(image.dtype),
        grid,
        mode="nearest",
        padding_mode="zeros",
        align_corners=False,
    )
    return turned[0], nearest.view(*label.shape[:-3], *nearest.shape[-3:]).to(label.dtype)


def box_size(matrix: Matrix | None, patch_size: Sequence[int]) -> Triple:
    """Size of the box that holds every voxel a patch is sampled from; the patch size if nothing is drawn.

    It is the patch size plus an even number, so that both have the same centre. The outermost output voxel is
    (p - 1) / 2 from the centre, which is at most |matrix| @ (p - 1) / 2 in the input. For 40 voxels scaled by 1.4 that
    is 27.3 to either side: 55.6 voxels, or 56 with an even margin.
    """
    size = np.array(patch_size)
    half = np.abs(np.eye(3) if matrix is None else np.asarray(matrix)) @ ((size - 1) / 2)
    margin = np.ceil(np.maximum(half + 0.5 - size / 2, 0) - 1e-6).astype(int)
    d, h, w = size + 2 * margin
    return int(d), int(h), int(w)


class RotationScaling(AugmentationStep):
    """A rotation, a scaling, both or none, in voxels.

    Args:
        rotation_p: Probability of a rotation.
        degrees: Largest rotation in degrees, to either side, about each axis.
        scale_p: Probability of a scaling, independent of the rotation.
        scale: Range of the scale; above 1 the patch covers more of the image. Drawn below and above 1 equally often.
        degrees_in_plane: Largest rotation in degrees of a patch that is rotated in plane only.
        anisotropy: A patch more than this many times as wide as deep is rotated about the depth axis and scaled in H
            and W only. Other rotations would interpolate across thick slices (nnU-Net's "dummy 2D", above 3).
        patch_size: Voxels (D, H, W).
    """

    def __init__(
        self,
        rotation_p: float,
        degrees: float,
        scale_p: float,
        scale: Sequence[float],
        degrees_in_plane: float,
        anisotropy: float,
        patch_size: Triple,
    ) -> None:
        self.in_plane = is_anisotropic(patch_size, anisotropy)
        self.degrees = degrees_in_plane if self.in_plane else degrees
        self.scale = require_range("scale", scale, around=1.0)
        self.rotation_p = rotation_p
        self.scale_p = scale_p

    def draw(self, channels: int) -> Matrix | None:
        """Return a matrix of random angles and scale; None if the patch is neither rotated nor scaled."""
        rotate, scale, side, *uniform = torch.rand(7).tolist()
        if rotate >= self.rotation_p and scale >= self.scale_p:
            return None
        matrix = np.eye(3)
        if rotate < self.rotation_p:
            angles = np.deg2rad(self.degrees) * (2 * np.array(uniform[:3]) - 1)
            matrix = rotation_matrix(angles * (1, 0, 0) if self.in_plane else angles)
        if scale < self.scale_p:
            low, high = (self.scale[0], 1.0) if side < 0.5 else (1.0, self.scale[1])
            factor = low + (high - low) * uniform[3]
            matrix = matrix @ np.diag((1.0 if self.in_plane else factor, factor, factor))
        return tuple(tuple(row) for row in matrix.tolist())

    def box_size(self, drawn: Matrix, size: Triple) -> Triple:
        """See the function `box_size`."""
        return box_size(drawn, size)

    def apply(self, patch: Patch, drawn: Matrix) -> Patch:
        """Sample the patch from its box, see `rotate_scale`."""
        image, label = rotate_scale(patch.image, patch.label, drawn, patch.size)
        return patch._replace(image=image, label=label)


class Mirror(AugmentationStep):
    """Mirrors a patch along each of the dataset's `mirror_axes` (0 = D, 1 = H, 2 = W) with the probability `p`.

    The axes are those of `data.mirror_axes`. Predictions are averaged over the same axes.
    """

    def __init__(self, p: float, mirror_axes: Sequence[int]) -> None:
        self.p = p
        self.axes = tuple(mirror_axes)

    def draw(self, channels: int) -> tuple[int, ...] | None:
        """Return the axes to mirror; None if there are none."""
        return tuple(axis for axis in self.axes if uniform() < self.p) or None

    def apply(self, patch: Patch, drawn: Sequence[int]) -> Patch:
        """Flip image and label in place."""
        for part in (patch.image, patch.label):
            part.copy_(part.flip([axis + 1 for axis in drawn]))
        return patch


def rotation_matrix(angles: Sequence[float] | np.ndarray) -> np.ndarray:
    """Rotation by `angles` (radians) about D, then H, then W: a (3, 3) matrix in the order D, H, W."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _grid(matrix: Matrix, output_size: Sequence[int], input_size: Sequence[int], device: torch.device) -> Tensor:
    # torch's coordinates run over (W, H, D) and from -1 to 1 across an image: n = 2 * offset / size. So
    # offset_in = matrix @ offset_out becomes n_in[i] = sum_j matrix[i, j] * size_out[j] / size_in[i] * n_out[j].
    scaled = np.asarray(matrix) * np.array(output_size)[None, :] / np.array(input_size)[:, None]
    theta = torch.zeros(1, 3, 4)
    theta[0, :, :3] = torch.from_numpy(scaled[::-1, ::-1].copy())
    return functional.affine_grid(theta.to(device, non_blocking=True), [1, 1, *output_size], align_corners=False)
