"""Layers of the engine: packed active kernels, and how they run on volumes (C, H, W, D).

A convolution's output is kept as it is; the instance norm and the activation that follow are three numbers per channel,
which whoever reads a volume applies on the way. Neither concatenated nor shifted nor normalised volumes are written.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch

from e2enet.engine import microkernels
from e2enet.engine.signals import Signal, Triple, empty_volume
from e2enet.engine.tiling import Tiling, piece_table, slice_bits, tile_volume
from e2enet.engine.vector_code import LANES

Norm = tuple[np.ndarray, np.ndarray, float, float]
FEW_VOXELS = 2**13


class Kernels:
    """Active kernels, packed by output channel, and the channels that they read.

    weights: (O, C, depth, height, width); mask: (O, C) bool; shifts: (C,) of the depth-shift, +1 meaning
    out[d] = in[d - 1]. A kernel that is deep reads neighbouring slices as channels of their own.
    """

    def __init__(self, weights: np.ndarray, mask: np.ndarray, shifts: np.ndarray) -> None:
        self.written: np.ndarray = np.asarray(mask.any(axis=1))  # the other outputs are zero everywhere
        weights, mask = weights[self.written], mask[self.written]
        depth, *plane = weights.shape[2:]
        outputs, channels, slices = np.nonzero(np.repeat(mask[:, :, None], depth, axis=2))
        reads = np.stack([channels, slices - depth // 2 - shifts[channels]], axis=1)
        self.reads, numbers = np.unique(reads, axis=0, return_inverse=True)  # (reads, 2): channel, slices further
        self.numbers = numbers.reshape(-1).astype(np.int64)
        self.starts = np.searchsorted(outputs, np.arange(len(weights) + 1)).astype(np.int64)
        packed = weights[outputs, channels, slices]
        self.weights = np.ascontiguousarray(packed.reshape(len(packed), np.prod(plane)), np.float32)
        self.plane: tuple[int, int] = plane[0], plane[1]


class Convolution:
    """Depth-shift, convolution of concatenated sources and instance norm with activation.

    The bias before the norm changes nothing and is left out. padding: of the plane. norm: weight, bias, eps and the
    negative slope of the activation; None for neither.
    """

    def __init__(self, kernels: Kernels, stride: Triple, padding: tuple[int, int], norm: Norm | None) -> None:
        self.kernels, self.stride, self.padding, self.norm = kernels, stride, padding, norm

    def __call__(self, sources: Sequence[Signal]) -> Signal:
        from e2enet.engine import loops

        (depth, *edges), plane, steps = sources[0].size, self.kernels.plane, self.stride[1:]
        depth = (depth - 1) // self.stride[0] + 1
        height, width = (
            (edge + 2 * pad - tap) // step + 1
            for edge, pad, tap, step in zip(edges, self.padding, plane, steps, strict=True)
        )
        out = empty_volume((len(self.kernels.starts) - 1, height, width, depth))
        signal = Signal.of(out, self.kernels.written)
        size = (depth, height, width)
        tiling = tile_volume(size, len(self.kernels.reads), plane, steps, torch.get_num_threads())
        work = _Work(self.kernels, sources, tiling, self.stride, self.padding)
        codes = loops.Codes(
            microkernels.filling(self.stride[0]).address,
            microkernels.plane_convolution(plane, steps).address,
            microkernels.storing(depth % LANES == 0 and tiling.folds == 1).address,
        )
        targets, totals = signal.addresses[self.kernels.written], np.zeros((len(work.tiles.places), len(out), 2))

        def convolve(first: int, last: int) -> None:
            room = _room(work.shape), _room((microkernels.ROWS, microkernels.COLUMNS, LANES)), _room((2, LANES))
            loops.convolve(
                first, last, codes, *room, work.tiles, work.reading, work.packed, targets, size, totals
            )  # fmt: skip

        run(convolve, len(totals))
        if self.norm is not None:
            moments = np.zeros((2, len(self.kernels.written)))
            moments[:, self.kernels.written] = _moments(out, totals)
            signal.normalise(moments[0], moments[1], *self.norm)
        return signal


def _moments(values: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each channel of (C, H, W, D), from `totals` (tiles, C, 2) where there are many voxels."""
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    if rows.shape[1] <= FEW_VOXELS:  # rounded sums of squares would be too rough where voxels hardly differ
        return rows.mean(axis=1, dtype=np.float64), rows.var(axis=1, dtype=np.float64)
    mean, square = totals.sum(axis=0).T / rows.shape[1]
    return mean, np.maximum(square - mean * mean, 0)


class Expansion:
    """Transposed convolution whose kernel equals its stride, without bias. weights (O, C, sd, sh, sw), mask (O, C)."""

    def __init__(self, weights: np.ndarray, mask: np.ndarray) -> None:
        self.up: Triple = weights.shape[2:]
        places = weights.transpose(0, 1, 3, 4, 2).reshape(*weights.shape[:2], 1, 1, -1)  # slices of a pixel together
        self.kernels = Kernels(places, mask, np.zeros(weights.shape[1], np.int64))
        self.columns = max(1, microkernels.ROWS * microkernels.COLUMNS // places.shape[-1])

    def __call__(self, sources: Sequence[Signal]) -> Signal:
        from e2enet.engine import loops

        size = sources[0].size
        depth, height, width = (edge * step for edge, step in zip(size, self.up, strict=True))
        signal = Signal.of(empty_volume((len(self.kernels.starts) - 1, height, width, depth)), self.kernels.written)
        tiling = tile_volume(size, len(self.kernels.reads), (1, 1), (1, 1), torch.get_num_threads())
        work = _Work(self.kernels, sources, tiling, (1, 1, 1), (0, 0), pixel=(1, 1))
        positions, in_plane = int(np.prod(self.up)), self.up[1] * self.up[2]
        codes = loops.Codes(
            microkernels.filling(1).address,
            microkernels.expansion(positions, self.columns).address,
            microkernels.interleaving(self.up[0], in_plane, self.columns).address,
        )
        targets = signal.addresses[self.kernels.written]

        def expand(first: int, last: int) -> None:
            room = _room(work.shape), _room((positions, self.columns, LANES))
            loops.expand(
                first, last, codes, *room, work.tiles, work.reading, work.packed, self.up, self.columns,
                np.empty(in_plane, np.int64), targets,
            )  # fmt: skip

        run(expand, len(work.tiles.places))
        return signal


class Pooling:
    """Max pooling with kernel = stride of some channels, all of them unless given."""

    def __init__(self, stride: Triple, channels: np.ndarray | None = None) -> None:
        self.stride, self.channels = stride, channels

    def __call__(self, sources: Sequence[Signal]) -> Signal:
        from e2enet.engine import loops

        (source,) = sources
        depth, height, width = (edge // step for edge, step in zip(source.size, self.stride, strict=True))
        channels = np.arange(len(source.addresses)) if self.channels is None else self.channels
        out = empty_volume((len(channels), height, width, depth))
        volumes = list(source.volumes())

        def pool(first: int, last: int) -> None:
            for row in range(first, last):
                channel = channels[row]
                loops.pool(volumes[channel], source.affine[channel], self.stride, out[row])

        run(pool, len(out))
        return Signal.of(out)


class _Work:
    """The tiles of one call, how they are filled from its sources, and where in them the kernels find channels."""

    def __init__(
        self,
        kernels: Kernels,
        sources: Sequence[Signal],
        tiling: Tiling,
        stride: Triple,
        padding: tuple[int, int],
        pixel: tuple[int, int] | None = None,
    ) -> None:
        from e2enet.engine import loops

        taps = pixel or kernels.plane
        rows, columns = (
            (edge - 1) * step + tap
            for edge, step, tap in zip((tiling.rows, tiling.columns), stride[1:], taps, strict=True)
        )
        self.shape = (len(kernels.reads), rows, columns, LANES)
        vectors = tiling.pieces()
        pieces = piece_table(vectors)
        channel, shift = kernels.reads.T
        shifts, numbers = np.unique(shift, return_inverse=True)
        slices = np.zeros((len(shifts), *pieces.shape[:2], 2), np.int64)
        for row, moved in zip(slices, shifts.tolist(), strict=True):
            for line, vector in zip(row, vectors, strict=True):
                for cell, piece in zip(line, vector, strict=False):
                    cell[:] = slice_bits(piece, moved, stride[0], sources[0].size[0]), moved
        addresses = np.concatenate([source.addresses for source in sources])[channel]
        affine = np.ascontiguousarray(np.concatenate([source.affine for source in sources])[channel])
        table = np.stack([addresses, numbers.reshape(-1)], axis=1)
        self.tiles = loops.Tiles(tiling.tiles(), pieces, (tiling.rows, tiling.columns), tiling.fold_width)
        self.reading = loops.Reading(table, affine, slices, sources[0].size, padding, stride)
        self.packed = loops.Packed(kernels.starts, kernels.numbers * (rows * columns * LANES * 4), kernels.weights)


_memory = threading.local()


def _room(shape: tuple[int, ...]) -> np.ndarray:
    """Uninitialised float32 memory of this thread at an address that vectors may be loaded from, one per ndim."""
    count = int(np.prod(shape))
    rooms: dict[int, np.ndarray] = _memory.__dict__.setdefault("rooms", {})
    if len(shape) not in rooms or rooms[len(shape)].size < count:
        # The last pixels of a tile are read some at once, beyond its end too.
        rooms[len(shape)] = empty_volume((count + microkernels.ROWS * microkernels.COLUMNS * LANES,))
    return rooms[len(shape)][:count].reshape(shape)


def run(work: Callable[[int, int], Any], count: int) -> None:
    """Call `work(first, last)` for parts of 0 .. count, on as many threads as torch uses."""
    threads = torch.get_num_threads()
    parts = min(count, 16 * threads)
    edges = [count * part // parts for part in range(parts + 1)]
    if threads == 1 or parts == 1:
        work(0, count)
    else:
        list(_pool(threads).map(work, edges[:-1], edges[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="e2enet-engine")
