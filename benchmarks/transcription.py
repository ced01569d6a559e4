"""E2ENet written plainly from its description, as the baseline of `benchmarks/network.py`.

Nothing here is optimised: every block pads the depth axis, chunks the channels, rolls each group, concatenates,
convolves contiguous tensors and calls `nn.InstanceNorm3d`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]


def shift_depth_plainly(x: Tensor, shift_size: int) -> Tensor:
    """Shift channel group g of (B, C, D, H, W) by g - shift_size // 2 slices: pad, chunk, roll, cat, crop."""
    margin = shift_size // 2
    padded = F.pad(x, (0, 0, 0, 0, margin, margin))
    groups = padded.chunk(shift_size, dim=1)
    rolled = [
        torch.roll(group, shift, dims=2) for group, shift in zip(groups, range(-margin, margin + 1), strict=False)
    ]
    return torch.cat(rolled, dim=1).narrow(2, margin, x.shape[2]).contiguous()


class PlainBlock(nn.Module):
    """Depth shift, (1, 3, 3) convolution, instance norm, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: Triple, shift_size: int) -> None:
        super().__init__()
        self.shift_size = shift_size
        self.conv = nn.Conv3d(in_channels, out_channels, (1, 3, 3), stride, (0, 1, 1))
        self.norm = nn.InstanceNorm3d(out_channels, eps=1e-5, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.shift_size > 1:
            x = shift_depth_plainly(x, self.shift_size)
        return F.leaky_relu(self.norm(self.conv(x)), 0.01)


class PlainE2ENet(nn.Module):
    """The fusion-grid E2ENet with dense kernels: input (B, C, D, H, W), output the logits of every head."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        strides: Sequence[Triple],
        base_features: int = 48,
        max_features: int = 320,
        shift_size: int = 3,
    ) -> None:
        super().__init__()
        levels = len(strides) + 1
        widths = [min(base_features * 2**i, max_features) for i in range(levels)]
        self.levels = levels
        self.encoder = nn.ModuleList()
        for i, width in enumerate(widths):
            stride, previous = ((1, 1, 1), in_channels) if i == 0 else (strides[i - 1], widths[i - 1])
            first_shift = 1 if i == 0 else shift_size
            first = PlainBlock(previous, width, stride, first_shift)
            self.encoder.append(nn.Sequential(first, PlainBlock(width, width, (1, 1, 1), shift_size)))
        self.up, self.down, self.node = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for j in range(1, levels):
            for i in range(levels - j):
                key, stride = f"{i}_{j}", strides[i]
                self.up[key] = nn.ConvTranspose3d(widths[i + 1], widths[i], stride, stride, bias=False)
                if i > 0:
                    self.down[key] = nn.MaxPool3d(tuple(strides[i - 1]), tuple(strides[i - 1]))
                total = 2 * widths[i] + (widths[i - 1] if i > 0 else 0)
                blocks = [PlainBlock(total, widths[i], (1, 1, 1), shift_size)]
                if i + j == levels - 1:
                    blocks.append(PlainBlock(widths[i], widths[i], (1, 1, 1), shift_size))
                self.node[key] = nn.Sequential(*blocks)
        self.heads = nn.ModuleList(nn.Conv3d(widths[i], num_classes, 1, bias=False) for i in range(max(1, levels - 2)))

    def forward(self, x: Tensor) -> list[Tensor]:
        column = []
        for stage in self.encoder:
            x = stage(x)
            column.append(x)
        last = {self.levels - 1: column[-1]}
        for j in range(1, self.levels):
            following = []
            for i in range(self.levels - j):
                key = f"{i}_{j}"
                parts = [column[i], self.up[key](column[i + 1])]
                if i > 0:
                    parts.append(self.down[key](column[i - 1]))
                following.append(self.node[key](torch.cat(parts, dim=1)))
            column = following
            last[self.levels - 1 - j] = column[-1]
        return [head(last[i]) for i, head in enumerate(self.heads)]
