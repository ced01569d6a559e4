"""Values between the operations of a fused pass, and where their gradients come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from e2enet.network.layers import Triple

# Rows of an affine table (B, 4, C): what a reader applies (values * scale + offset), and the norm's statistics.
SCALE, OFFSET, MEAN, RSTD = range(4)


@dataclass(frozen=True)
class Volumes:
    """What an operation wrote, and the norm and activation that its readers apply.

    values: (B, C, D, H, W), channels-last, or the products of an expansion (B, D / sd, H / sh, W / sw, sd, sh, sw, C).
    affine: (B, 4, C) of `statistics`, float32 or wider; None: values are read as they are. slope: of the leaky ReLU
    for negative values; it belongs to `affine`.
    """

    values: Tensor
    affine: Tensor | None = None
    slope: float = 1.0

    @property
    def channels(self) -> int:
        """Number of channels."""
        return channels_of(self.values)


@dataclass(frozen=True)
class Reader:
    """The gradient of a prepared input, of which one source's channels are a part.

    grad: (B, all channels, D / depth_stride, H, W). start: the source's first channel in it. shift_size and
    depth_stride: of the prepared input. largest: if the operation read maxima of the source, the number of each
    window's largest voxel, uint8 (B, C, D, H, W) of the pooled volume; window: the pooling's stride.
    """

    grad: Tensor
    start: int
    shift_size: int = 1
    depth_stride: int = 1
    largest: Tensor | None = None
    window: Triple = (1, 1, 1)

    @property
    def place(self) -> tuple[int, ...]:
        """The numbers that the operations take for each reader."""
        return self.start, self.shift_size, self.depth_stride, *self.window


TILE_VOXELS = 128  # of the largest tile that a program of a convolution writes
PLACE = 6  # numbers of `Reader.place`


def channels_of(values: Tensor) -> int:
    """Return the channels of (B, C, D, H, W) or of an expansion's products (.., C)."""
    return values.shape[1] if values.ndim == 5 else values.shape[-1]


def size_of(values: Tensor) -> Triple:
    """Return (D, H, W) of (B, C, D, H, W) or of an expansion's products (B, D / sd, H / sh, W / sw, sd, sh, sw, C)."""
    if values.ndim == 5:
        return values.shape[2], values.shape[3], values.shape[4]
    depth, height, width, *steps = values.shape[1:7]
    sd, sh, sw = steps
    return depth * sd, height * sh, width * sw


def convolved_size(size: Triple, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Triple:
    """Return (D, H, W) of a convolution of planes. kernel, padding: (height, width). stride: (depth, height, width)."""
    depth, *plane = size
    height, width = (
        (edge + 2 * pad - taps) // step + 1
        for edge, taps, step, pad in zip(plane, kernel, stride[1:], padding, strict=True)
    )
    return -(-depth // stride[0]), height, width


def steps_of(values: Tensor) -> Triple:
    """Return the strides (sd, sh, sw) of an expansion's products, (1, 1, 1) of other values."""
    return (1, 1, 1) if values.ndim == 5 else (values.shape[4], values.shape[5], values.shape[6])


def voxels(values: Tensor) -> int:
    """Return the voxels of one sample."""
    return math.prod(size_of(values))
