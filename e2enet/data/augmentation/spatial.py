"""Rotation and scaling of a patch, drawn before the patch is read, so that just enough is read for it.

A patch turned within itself has empty corners. The transform therefore takes a larger patch around the same
centre, of `input_size` voxels, and returns the patch size. Only samples that are rotated or scaled pay for
the larger read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchio as tio
from torch.nn import functional


class RotateScale(tio.transforms.SpatialTransform):
    """Sample a patch through a linear map around its centre.

    Output voxel o reads the input at `matrix @ o`, both relative to their patch's centre, in voxels (the
    anisotropy of the voxels is left out of account, as in nnU-Net). Images are interpolated linearly,
    labels take the nearest voxel; nnU-Net uses cubic splines, which take some twenty times as long here.
    Outside the input is 0.

    Args:
        matrix: (3, 3) in the order D, H, W.
        patch_size: Output size in voxels (D, H, W).
    """

    def __init__(self, matrix: np.ndarray, patch_size: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.patch_size = tuple(int(size) for size in patch_size)
        self.args_names = ["matrix", "patch_size"]

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of the input patch that holds every voxel the output reads.

        It is the patch size plus an even number, so that both have the same centre. The outermost output
        voxel is (p - 1) / 2 from it, so at most |matrix| @ (p - 1) / 2 in the input: for 40 voxels scaled by
        1.4 that is 27.3 to either side, 55.6 voxels, and by an even margin 56.
        """
        half = np.abs(self.matrix) @ ((np.array(self.patch_size) - 1) / 2)
        margin = np.ceil(np.maximum(half + 0.5 - np.array(self.patch_size) / 2, 0) - 1e-6).astype(int)
        d, h, w = (size + 2 * int(more) for size, more in zip(self.patch_size, margin, strict=True))
        return d, h, w

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Replace each image, of any size around the patch's centre, by (C, *patch_size) voxels of it."""
        for image in self.get_images(subject):
            data = image.data
            mode = "bilinear" if image.type == tio.INTENSITY else "nearest"
            sampled = functional.grid_sample(
                data[None].float(),
                self._grid(data.shape[1:]),
                mode=mode,
                padding_mode="zeros",
                align_corners=False,
            )
            image.set_data(sampled[0].to(data.dtype))
        return subject

    def _grid(self, input_size: Sequence[int]) -> torch.Tensor:
        # torch's coordinates run over (W, H, D) and from -1 to 1 across an image: n = 2 * offset / size. So
        # offset_in = matrix @ offset_out becomes n_in[i] = sum_j matrix[i, j] * size_out[j] / size_in[i] *
        # n_out[j].
        scaled = self.matrix * np.array(self.patch_size)[None, :] / np.array(input_size)[:, None]
        theta = np.zeros((1, 3, 4))
        theta[0, :, :3] = scaled[::-1, ::-1]
        return functional.affine_grid(torch.from_numpy(theta).float(), [1, 1, *self.patch_size], align_corners=False)


class RandomRotateScale:
    """Draws a RotateScale, or none, from torch's global generator.

    Args:
        patch_size: Output size in voxels (D, H, W).
        degrees: Largest rotation to either side, about each axis.
        scales: Range of the scale; above 1 the patch covers more of the image. Drawn below and above 1
            equally often.
        rotation_p: Probability of a rotation.
        scale_p: Probability of a scaling, independent of the rotation.
        in_plane: Rotate about the depth axis and scale H and W only: for patches so anisotropic that
            turning slices into one another would interpolate across thick slices (nnU-Net's "dummy 2D").
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        *,
        degrees: float = 30.0,
        scales: tuple[float, float] = (0.7, 1.4),
        rotation_p: float = 0.2,
        scale_p: float = 0.2,
        in_plane: bool = False,
    ) -> None:
        self.patch_size = tuple(patch_size)
        self.degrees = degrees
        self.scales = scales
        self.rotation_p = rotation_p
        self.scale_p = scale_p
        self.in_plane = in_plane

    def draw(self) -> RotateScale | None:
        """A transform with random angles and scale; None where the sample is neither rotated nor scaled."""
        rotate, scale, side, *uniform = torch.rand(7).tolist()
        if rotate >= self.rotation_p and scale >= self.scale_p:
            return None
        matrix = np.eye(3)
        if rotate < self.rotation_p:
            angles = np.deg2rad(self.degrees) * (2 * np.array(uniform[:3]) - 1)
            matrix = rotation_matrix(angles * (1, 0, 0) if self.in_plane else angles)
        if scale < self.scale_p:
            low, high = (self.scales[0], 1.0) if side < 0.5 else (1.0, self.scales[1])
            factor = low + (high - low) * uniform[3]
            matrix = matrix @ np.diag((1.0 if self.in_plane else factor, factor, factor))
        return RotateScale(matrix, self.patch_size, copy=False)


def rotation_matrix(angles: np.ndarray) -> np.ndarray:
    """Rotation by `angles` (radians) about D, then H, then W: a (3, 3) matrix in the order D, H, W."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (other for other in range(3) if other != axis)
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix
