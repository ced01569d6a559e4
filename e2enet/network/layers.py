"""The layers of E2ENet, written for channels-last memory: the same results as torch's, fewer bytes moved.

In channels-last order a volume (B, C, D, H, W) lies in memory as (B, D, H, W, C). Two things follow:
a (1, 3, 3) convolution is a 2D convolution of B * D images, and a transposed convolution whose kernel equals its
stride is one matrix product of voxels by weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlaneConv3d(nn.Conv3d):
    """`nn.Conv3d`, run as a 2D convolution of slices where its kernel has depth 1 and no depth padding."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.kernel_size[0] == 1 and self.padding[0] == 0 and self.groups == 1
        if not flat:
            return super().forward(x.contiguous(memory_format=torch.channels_last_3d))
        stride_depth, *stride_plane = self.stride
        planes, batch = to_planes(x[:, :, ::stride_depth]), x.shape[0]
        out = F.conv2d(planes, self.weight.squeeze(2), self.bias, tuple(stride_plane), self.padding[1:])
        return from_planes(out, batch)


def to_planes(x: Tensor) -> Tensor:
    """Return (B, C, D, H, W) as (B * D, C, H, W): a view where `x` is channels-last."""
    batch, channels, depth, height, width = x.shape
    planes = x.permute(0, 2, 3, 4, 1).reshape(batch * depth, height, width, channels)
    return planes.permute(0, 3, 1, 2)


def from_planes(planes: Tensor, batch: int) -> Tensor:
    """Return (B * D, C, H, W) as (B, C, D, H, W), the opposite of `to_planes`."""
    count, channels, height, width = planes.shape
    rows = planes.permute(0, 2, 3, 1).reshape(batch, count // batch, height, width, channels)
    return rows.permute(0, 4, 1, 2, 3)


class StrideUp3d(nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` with kernel = stride and no padding, as one matrix product.

    Output voxel (s d + a, ..) takes input voxel d times weight[:, :, a, ..]: no two products meet in a voxel, so
    (voxels, C_in) @ (C_in, C_out * volume) holds every output value once and only has to be laid out.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__(in_channels, out_channels, stride, stride, bias=False)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        batch, _, depth, height, width = x.shape
        sd, sh, sw = (int(s) for s in self.stride)
        weight = self.weight.permute(0, 2, 3, 4, 1).reshape(self.in_channels, -1)
        out = x.permute(0, 2, 3, 4, 1) @ weight
        out = out.view(batch, depth, height, width, sd, sh, sw, self.out_channels)
        out = out.permute(0, 1, 4, 2, 5, 3, 6, 7)
        out = out.reshape(batch, depth * sd, height * sh, width * sw, self.out_channels)
        return out.permute(0, 4, 1, 2, 3)


class StrideMaxPool3d(nn.MaxPool3d):
    """`nn.MaxPool3d` with kernel = stride."""

    def __init__(self, stride: tuple[int, int, int]) -> None:
        super().__init__(stride, stride)
