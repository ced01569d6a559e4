"""Layers of the engine: lists of active kernels, and how they run on volumes (C, H, W, D).

A convolution's output is kept as it is. The instance norm and the activation that follow are three numbers per channel,
which every reader applies as it loads. Concatenated, shifted or normalised volumes are never written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from e2enet.network.engine import checks, inner_loops
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.lazy_volumes import LazyVolumes, Norm, empty_volume
from e2enet.network.engine.tile_plan import TilePlan, run, thread_buffer
from e2enet.network.engine.tiling import tile_volume
from e2enet.network.engine.vector_code import LANES
from e2enet.network.layers import Triple

FEW_VOXELS = 2**13


class Convolution:
    """Depth-shift, convolution of concatenated sources and instance norm with activation.

    weights: (K, taps) of `kernels.gather_weights`. padding: of the plane. norm: None for neither norm nor activation.
    The bias before the norm changes nothing and is left out.
    """

    def __init__(
        self, kernels: ActiveKernels, weights: np.ndarray, stride: Triple, padding: tuple[int, int], norm: Norm | None
    ) -> None:
        self.kernels, self.weights, self.stride, self.padding, self.norm = kernels, weights, stride, padding, norm

    def __call__(self, sources: Sequence[LazyVolumes]) -> LazyVolumes:
        nonzero, plane = self.kernels.nonzero_outputs, self.kernels.plane
        depth, height, width = (
            (edge + 2 * pad - tap) // step + 1
            for edge, pad, tap, step in zip(sources[0].size, (0, *self.padding), (1, *plane), self.stride, strict=True)
        )
        out = empty_volume((int(nonzero.sum()), height, width, depth))
        signal = LazyVolumes.of(out, nonzero)
        totals = convolve(self.kernels, self.weights, sources, signal, self.stride, self.padding)
        if self.norm is not None:
            found = np.zeros((2, len(nonzero)))
            found[:, nonzero] = moments(out, totals)
            signal.normalise(found[0], found[1], *self.norm)
        return signal


def convolve(
    kernels: ActiveKernels,
    weights: np.ndarray,
    sources: Sequence[LazyVolumes],
    out: LazyVolumes,
    stride: Triple,
    padding: tuple[int, int],
    add: np.ndarray | bool = False,
) -> np.ndarray:
    """Write the sums of a convolution into the volumes of `out`, for outputs that have kernels.

    add: for which channels of `out` sums are added to the volumes' values. Returns the totals of each written output's
    sums and of their squares, float64 (tiles, outputs, 2).
    """
    from e2enet.network.engine import loops

    targets, size = out.addresses[kernels.nonzero_outputs], out.size
    plane, steps = kernels.plane, (stride[1], stride[2])
    tiling = tile_volume(size, len(kernels.reads), plane, steps, torch.get_num_threads())
    work = TilePlan(kernels, weights, sources, tiling, stride=stride, padding=padding)
    written = "stream" if size[0] % LANES == 0 and tiling.strips == 1 else "write"
    codes = loops.Codes(
        inner_loops.filling(stride[0]).address,
        inner_loops.plane_convolution(plane, steps).address,
        np.where(_of_outputs(add, kernels), inner_loops.storing("add").address, inner_loops.storing(written).address),
    )
    loop = checks.watch(loops.convolve, sources, writes=[out], plane=plane)
    totals = np.zeros((len(work.tiles.places), len(targets), 2))

    def part(first: int, last: int) -> None:
        sums = thread_buffer("sums", inner_loops.ROWS, inner_loops.COLUMNS, LANES)
        buffers = thread_buffer("tile", *work.shape), sums, thread_buffer("totals", 2, LANES)
        loop(first, last, codes, *buffers, work.tiles, work.tile_source, work.kernel_list, targets, size, totals)

    run(part, len(totals))
    checks.require_written(out, kernels.nonzero_outputs)
    return totals


def _of_outputs(channels: np.ndarray | bool, kernels: ActiveKernels) -> np.ndarray:
    """Return the values of those channels, or the one of all, that have kernels."""
    return np.broadcast_to(channels, kernels.nonzero_outputs.shape)[kernels.nonzero_outputs]


def moments(values: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of each channel of (C, H, W, D), from `totals` (tiles, C, 2) for many voxels."""
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    if rows.shape[1] <= FEW_VOXELS:  # sums of squares are too rough if voxels hardly differ
        return rows.mean(axis=1, dtype=np.float64), rows.var(axis=1, dtype=np.float64)
    mean, square = totals.sum(axis=0).T / rows.shape[1]
    return mean, np.maximum(square - mean * mean, 0)


class Expansion:
    """Transposed convolution whose kernel equals its stride, without bias. weights: of `kernels.gather_weights`."""

    def __init__(self, kernels: ActiveKernels, weights: np.ndarray, stride: Triple) -> None:
        self.kernels, self.weights, self.stride = kernels, weights, stride

    def __call__(self, sources: Sequence[LazyVolumes]) -> LazyVolumes:
        nonzero = self.kernels.nonzero_outputs
        depth, height, width = (edge * step for edge, step in zip(sources[0].size, self.stride, strict=True))
        signal = LazyVolumes.of(empty_volume((int(nonzero.sum()), height, width, depth)), nonzero)
        expand(self.kernels, self.weights, sources, signal, self.stride)
        return signal


def expand(
    kernels: ActiveKernels,
    weights: np.ndarray,
    sources: Sequence[LazyVolumes],
    out: LazyVolumes,
    stride: Triple,
    add: np.ndarray | bool = False,
) -> None:
    """Write a block of stride (depth, row, column) voxels for each voxel of the sources; the rest as in `convolve`."""
    from e2enet.network.engine import loops

    tiling = tile_volume(sources[0].size, len(kernels.reads), kernels.plane, (1, 1), torch.get_num_threads())
    work = TilePlan(kernels, weights, sources, tiling, padding=kernels.halo)
    positions, in_plane = math.prod(stride), stride[1] * stride[2]
    columns = max(1, inner_loops.ROWS * inner_loops.COLUMNS // positions)
    adds, writes = (inner_loops.interleaving(stride[0], in_plane, columns, how).address for how in ("add", "write"))
    codes = loops.Codes(
        inner_loops.filling(1).address,
        inner_loops.expansion(positions, columns).address,
        np.where(_of_outputs(add, kernels), adds, writes),
    )
    loop, targets = checks.watch(loops.expand, sources, writes=[out]), out.addresses[kernels.nonzero_outputs]

    def part(first: int, last: int) -> None:
        buffers = thread_buffer("tile", *work.shape), thread_buffer("sums", positions, columns, LANES)
        loop(
            first, last, codes, *buffers, work.tiles, work.tile_source, work.kernel_list, stride, columns,
            np.empty(in_plane, np.int64), targets,
        )  # fmt: skip

    run(part, len(work.tiles.places))
    checks.require_written(out, kernels.nonzero_outputs)


class Pooling:
    """Max pooling with kernel = stride of the given channels, by default of all."""

    def __init__(self, stride: Triple, channels: np.ndarray | None = None) -> None:
        self.stride, self.channels = stride, channels

    def __call__(self, sources: Sequence[LazyVolumes]) -> LazyVolumes:
        from e2enet.network.engine import loops

        (source,) = sources
        depth, height, width = (edge // step for edge, step in zip(source.size, self.stride, strict=True))
        channels = np.arange(len(source.addresses)) if self.channels is None else self.channels
        out = empty_volume((len(channels), height, width, depth))
        volumes, loop = list(source.volumes()), checks.watch(loops.pool)

        def pool(first: int, last: int) -> None:
            for row in range(first, last):
                channel = channels[row]
                loop(volumes[channel], source.affine[channel], self.stride, out[row])

        run(pool, len(out))
        return LazyVolumes.of(out)
