"""The block that all of E2ENet is made of: concatenate, depth-shift, convolution, instance norm, LeakyReLU."""

from __future__ import annotations

from torch import Tensor, nn

from e2enet.network.layers import PlaneConv3d, Triple
from e2enet.network.norm import InstanceNormAct
from e2enet.network.shift import check_shift_size, shift_concat


class ConvBlock(nn.Module):
    """One block of E2ENet (spec section 1).

    Input: one tensor (B, C_k, D, H, W) or several. Their channels are concatenated in the order given and sum to
    `in_channels`. Output: (B, out_channels, D / stride, ..). Padding keeps the size if `stride` is 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: Triple = (1, 3, 3),
        stride: Triple = (1, 1, 1),
        shift_size: int = 3,
    ) -> None:
        super().__init__()
        check_shift_size(shift_size)
        self.shift_size = shift_size
        depth, height, width = (size // 2 for size in kernel_size)
        self.conv = PlaneConv3d(in_channels, out_channels, kernel_size, stride, (depth, height, width), normalised=True)
        self.norm = InstanceNormAct(out_channels)

    def forward(self, *sources: Tensor) -> Tensor:
        x: Tensor = self.norm(self.conv(shift_concat(sources, self.shift_size)), self.conv.bias)
        return x


class BlockStack(nn.Sequential):
    """Blocks in sequence. The first may take several sources."""

    def forward(self, *sources: Tensor) -> Tensor:
        first, *others = self
        x = first(*sources)
        for block in others:
            x = block(x)
        return x


def stack_blocks(
    in_channels: int,
    out_channels: int,
    count: int,
    *,
    kernel_size: Triple,
    shift_size: int,
    stride: Triple = (1, 1, 1),
    first_shift: int | None = None,
) -> BlockStack:
    """Return `count` blocks. The first gets `in_channels`, the stride and, if given, `first_shift`."""
    blocks = [
        ConvBlock(
            in_channels if index == 0 else out_channels,
            out_channels,
            kernel_size=kernel_size,
            stride=stride if index == 0 else (1, 1, 1),
            shift_size=first_shift if index == 0 and first_shift is not None else shift_size,
        )
        for index in range(count)
    ]
    return BlockStack(*blocks)
