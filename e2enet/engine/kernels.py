"""Active kernels of a layer as lists, by the channel that they add to: for loops over active kernels alone."""

from __future__ import annotations

import math

import numpy as np


class Kernels:
    """Lists of active kernels: those of output o are entries starts[o] .. starts[o + 1] - 1.

    Args:
        outputs, channels, slices: int64 (K,), an entry adds to a channel what it makes of another one, so many slices
            further along the depth. A kernel that is deep is an entry for each of its slices.
        rows: int64 (K,), where the entry's weights lie in the layer's weight as (rows, taps).
        written: number of output channels.
        plane: height and width of a kernel, in pixels that it reads. taps: weights of an entry, if not one per pixel.
        flipped: the taps are taken in opposite order, as in a convolution's gradient.

    Attributes:
        written: bool (O,); the other outputs are zero everywhere and not counted in `starts`.
        reads: (reads, 2), the different pairs of channel and slices further. numbers: (K,), each entry's pair.
    """

    def __init__(
        self,
        outputs: np.ndarray,
        channels: np.ndarray,
        slices: np.ndarray,
        rows: np.ndarray,
        *,
        written: int,
        plane: tuple[int, int],
        taps: int | None = None,
        flipped: bool = False,
    ) -> None:
        order = np.argsort(outputs, kind="stable")
        self.rows = rows[order].astype(np.int32)
        self.plane, self.taps, self.flipped = plane, taps or plane[0] * plane[1], flipped
        counts = np.bincount(outputs, minlength=written)
        self.written: np.ndarray = counts > 0
        self.starts = np.concatenate([[0], np.cumsum(counts[self.written])]).astype(np.int64)
        reads = np.stack([channels, slices], axis=1)[order]
        self.reads, numbers = np.unique(reads, axis=0, return_inverse=True)
        self.numbers = numbers.reshape(-1).astype(np.int32)

    @classmethod
    def of_convolution(cls, mask: np.ndarray, shifts: np.ndarray, kernel: tuple[int, int, int]) -> Kernels:
        """Of a weight (O, C, depth, height, width) after a depth-shift.

        mask: (O, C) bool; shifts: (C,), +1 meaning out[d] = in[d - 1].
        """
        depth, height, width = kernel
        outputs, channels, taps = np.nonzero(np.repeat(mask[:, :, None], depth, axis=2))
        rows = (outputs * mask.shape[1] + channels) * depth + taps
        slices = taps - depth // 2 - shifts[channels]
        return cls(outputs, channels, slices, rows, written=len(mask), plane=(height, width))

    @classmethod
    def of_expansion(cls, mask: np.ndarray, stride: tuple[int, int, int]) -> Kernels:
        """Of the weight (C, O, ..) of a transposed convolution whose kernel equals its stride; mask: (C, O) bool.

        A kernel is one entry here: all places of a block are taps.
        """
        channels, outputs = np.nonzero(mask)
        rows = channels * mask.shape[1] + outputs
        slices = np.zeros_like(rows)
        return cls(outputs, channels, slices, rows, written=mask.shape[1], plane=(1, 1), taps=math.prod(stride))

    @classmethod
    def of_expansion_gradient(cls, mask: np.ndarray, stride: tuple[int, int, int]) -> Kernels:
        """Of the opposite of an expansion: a convolution by its stride, whose kernel equals it."""
        depth, height, width = stride
        outputs, channels, slices = np.nonzero(np.repeat(mask[:, :, None], depth, axis=2))
        rows = (outputs * mask.shape[1] + channels) * depth + slices
        return cls(outputs, channels, slices, rows, written=len(mask), plane=(height, width))

    def transposed(self, channels: int) -> Kernels:
        """Of the gradient of a convolution of so many channels, without stride: what it reads, it writes."""
        outputs = np.repeat(np.flatnonzero(self.written), np.diff(self.starts))
        read, slices = self.reads[self.numbers].T
        return Kernels(read, outputs, -slices, self.rows, written=channels, plane=self.plane, flipped=True)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """The weights of every entry, (K, taps) float32, of the layer's weight in its own shape."""
        packed = weight.reshape(-1, self.taps)[self.rows]
        return np.ascontiguousarray(packed[:, ::-1] if self.flipped else packed, np.float32)
