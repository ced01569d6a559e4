"""Lists of a layer's active kernels by output channel, for loops over active kernels only."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from e2enet.network.layers import Triple


class ActiveKernels:
    """Lists of active kernels: those of output o are entries starts[o] .. starts[o + 1] - 1.

    Args:
        outputs, channels, slices: int64 (K,). An entry adds to channel `outputs` what it computes from channel
            `channels`, `slices` slices further along the depth. A kernel of several slices has one entry for each.
        rows: int64 (K,), the row of an entry's weights in the layer's weight, seen as (rows, taps).
        taps: weights of such a row: height * width of a convolution's kernel, all values of an expansion's.
        num_outputs: number of output channels.
        plane: rows and columns of pixels that an output reads.
        columns: the taps of an entry in their order: (n,) for all entries, or (K, n) with a row per entry, in which the
            number `taps` stands for a zero. None: all taps as they are.
        pixels: (K, 2), row and column, within the plane, of the first pixel that an entry reads. None: 0, 0.
        halo: rows and columns of the plane that lie before the pixel of the output.

    Attributes:
        nonzero_outputs: bool (O,), the outputs with entries. The others are zero everywhere and are not counted in
            `starts`. places: their numbers.
        reads: (reads, 2), the different pairs of channel and slices. numbers: (K,), each entry's pair.
        plans: tables of the loops over these kernels, see `tile_plan`.
    """

    def __init__(
        self,
        outputs: np.ndarray,
        channels: np.ndarray,
        slices: np.ndarray,
        rows: np.ndarray,
        *,
        taps: int,
        num_outputs: int,
        plane: tuple[int, int],
        columns: np.ndarray | None = None,
        pixels: np.ndarray | None = None,
        halo: tuple[int, int] = (0, 0),
    ) -> None:
        order = np.argsort(outputs, kind="stable")
        self.rows = rows[order].astype(np.int32)
        self.columns = columns[order] if columns is not None and columns.ndim == 2 else columns
        self.pixels = None if pixels is None else pixels[order]
        self.taps, self.plane, self.halo = taps, plane, halo
        counts = np.bincount(outputs, minlength=num_outputs)
        self.nonzero_outputs: np.ndarray = counts > 0
        self.places = np.flatnonzero(self.nonzero_outputs)
        self.starts = np.concatenate([[0], np.cumsum(counts[self.nonzero_outputs])]).astype(np.int64)
        reads = np.stack([channels, slices], axis=1)[order]
        self.reads, numbers = np.unique(reads, axis=0, return_inverse=True)
        self.numbers = numbers.reshape(-1).astype(np.int32)
        self.plans: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"plans": {}}  # copies make their own

    @classmethod
    def of_convolution(cls, mask: np.ndarray, shifts: np.ndarray, kernel: Triple) -> ActiveKernels:
        """List the kernels of a weight (O, C, depth, height, width) that is applied after a depth-shift.

        mask: (O, C) bool. shifts: (C,), +1 meaning out[d] = in[d - 1].
        """
        _, height, width = kernel
        outputs, channels, slices, rows = _entries(mask, shifts, kernel)
        plane = height, width
        return cls(outputs, channels, slices, rows, taps=height * width, num_outputs=len(mask), plane=plane)

    @classmethod
    def of_expansion(cls, mask: np.ndarray, stride: Triple) -> ActiveKernels:
        """List the kernels of a transposed convolution with kernel = stride, weight (C, O, ..); mask: (C, O) bool.

        A kernel is a single entry. All places of a block are its taps, with the slices of a pixel side by side.
        """
        channels, outputs = np.nonzero(mask)
        rows = channels * mask.shape[1] + outputs
        order = np.arange(np.prod(stride)).reshape(stride).transpose(1, 2, 0).reshape(-1)
        return cls(
            outputs, channels, np.zeros_like(rows), rows, taps=len(order), num_outputs=mask.shape[1], plane=(1, 1),
            columns=order,
        )  # fmt: skip

    @classmethod
    def of_expansion_gradient(cls, mask: np.ndarray, stride: Triple) -> ActiveKernels:
        """List the kernels of an expansion's gradient: a convolution whose kernel and stride are `stride`."""
        depth, height, width = stride
        outputs, channels, slices = np.nonzero(np.repeat(mask[:, :, None], depth, axis=2))
        rows = (outputs * mask.shape[1] + channels) * depth + slices
        return cls(
            outputs, channels, slices, rows, taps=height * width, num_outputs=len(mask), plane=(height, width)
        )  # fmt: skip

    @classmethod
    def of_strided_gradient(
        cls, mask: np.ndarray, shifts: np.ndarray, kernel: Triple, stride: Triple, padding: tuple[int, int]
    ) -> ActiveKernels:
        """List the kernels of a strided convolution's gradient: an expansion; neighbouring pixels add to one block.

        Place b of pixel x's block gets tap k of pixel x + n if stride * n = b + padding - k. Along the depth, the
        convolution read slice stride * z + m for slice z. That slice is place m % stride of another slice's block.
        """
        _, height, width = kernel
        outputs, channels, slices, rows = _entries(mask, shifts, kernel)
        along_y, along_x = (
            _neighbours(step, taps, pad) for step, taps, pad in zip(stride[1:], kernel[1:], padding, strict=True)
        )
        first = min(along_y), min(along_x)
        plane = max(along_y) - first[0] + 1, max(along_x) - first[1] + 1
        zero, entries = height * width, []
        for y, x in product(along_y, along_x):
            chosen = np.full((stride[0], stride[1], stride[2], stride[0]), zero, np.uint8)
            for (b, tap_y), (c, tap_x), a in product(along_y[y].items(), along_x[x].items(), range(stride[0])):
                chosen[a, b, c, a] = tap_y * width + tap_x
            pixel = np.broadcast_to(np.array([y - first[0], x - first[1]]), (len(rows), 2))
            entries.append((chosen.reshape(stride[0], -1)[slices % stride[0]], pixel))
        count = len(entries)
        return cls(
            np.tile(channels, count), np.tile(outputs, count), np.tile(slices % stride[0] - slices, count) // stride[0],
            np.tile(rows, count), taps=zero, num_outputs=mask.shape[1], plane=plane,
            columns=np.concatenate([columns for columns, _ in entries]),
            pixels=np.concatenate([pixel for _, pixel in entries]), halo=(-first[0], -first[1]),
        )  # fmt: skip

    def transposed(self, channels: int) -> ActiveKernels:
        """List the kernels of the gradient, for `channels` inputs and stride 1: reads and outputs are swapped."""
        outputs = np.repeat(np.flatnonzero(self.nonzero_outputs), np.diff(self.starts))
        read, slices = self.reads[self.numbers].T
        order = np.arange(self.taps)[::-1]
        return ActiveKernels(
            read, outputs, -slices, self.rows, taps=self.taps, num_outputs=channels, plane=self.plane, columns=order
        )  # fmt: skip

    def gather_weights(self, weight: np.ndarray) -> np.ndarray:
        """Return every entry's weights, float32 (K, as many as `columns`), from the layer's weight in its own shape."""
        packed = weight.reshape(-1, self.taps)[self.rows]
        if self.columns is not None and self.columns.ndim == 2:
            packed = np.take_along_axis(np.pad(packed, ((0, 0), (0, 1))), self.columns, axis=1)
        elif self.columns is not None:
            packed = packed[:, self.columns]
        return np.ascontiguousarray(packed, np.float32)

    def scatter_weights(self, packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Invert `gather_weights` for entries with all taps as they are; the rest of `shape` is zero."""
        assert self.columns is None
        whole = np.zeros(shape, np.float32)
        whole.reshape(-1, self.taps)[self.rows] = packed
        return whole

    def tile_offsets(self, rows: int, columns: int) -> np.ndarray:
        """Return where each entry's first pixel lies in a tile (reads, rows, columns): int64, in pixels."""
        offsets = self.numbers.astype(np.int64) * (rows * columns)  # in every NumPy: compiled code reads 8 bytes each
        return offsets if self.pixels is None else offsets + self.pixels @ np.array([columns, 1])


def _entries(mask: np.ndarray, shifts: np.ndarray, kernel: Triple) -> tuple[np.ndarray, ...]:
    """Return output, channel, slices further and row of every slice of a convolution's active kernels."""
    outputs, channels, taps = np.nonzero(np.repeat(mask[:, :, None], kernel[0], axis=2))
    rows = (outputs * mask.shape[1] + channels) * kernel[0] + taps
    return outputs, channels, taps - kernel[0] // 2 - shifts[channels], rows


def _neighbours(stride: int, taps: int, padding: int) -> dict[int, dict[int, int]]:
    """Return {distance of a neighbour: {place of a block: the neighbour's tap for it}}."""
    found: dict[int, dict[int, int]] = {}
    for place, tap in product(range(stride), range(taps)):
        further, rest = divmod(place + padding - tap, stride)
        if rest == 0:
            found.setdefault(further, {})[place] = tap
    return found
