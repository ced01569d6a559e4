"""Layers of the engine: lists of active kernels, and how they run on volumes (B, C, H, W, D).

A convolution's output is kept as it is. The instance norm and the activation that follow are three numbers per channel,
which every reader applies as it loads. Concatenated, shifted or normalised volumes are never written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from e2enet.network.engine import checks, inner_loops
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.hand_out import run_pieces, run_rows
from e2enet.network.engine.lazy_volumes import LazyVolumes, Norm, empty_volume
from e2enet.network.engine.tile_plan import plan_of, thread_buffer
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
        batch = len(sources[0].addresses)
        out = empty_volume((batch, len(self.kernels.starts) - 1, height, width, depth))
        signal = LazyVolumes.of(out, nonzero)
        totals = convolve(self.kernels, self.weights, sources, signal, self.stride, self.padding)
        if self.norm is not None:
            found = np.zeros((2, batch, len(nonzero)))
            found[:, :, nonzero] = moments(out, totals)
            signal.normalise(found[0], found[1], *self.norm)
        return signal


def convolve(
    kernels: ActiveKernels,
    weights: np.ndarray,
    sources: Sequence[LazyVolumes],
    out: LazyVolumes,
    stride: Triple,
    padding: tuple[int, int],
    add: np.ndarray | None = None,
) -> np.ndarray:
    """Write the sums of a convolution into the volumes of `out`, for outputs that have kernels.

    add: for which channels of `out` sums are added to the volumes' values. Returns the totals of each written output's
    sums and of their squares, float64 (B, tiles, outputs, 2).
    """
    from e2enet.network.engine import loops

    targets, size, plane = _targets(out, kernels), out.size, kernels.plane
    plan = plan_of(kernels, size, sources[0].size, stride=stride, padding=padding)
    written = "stream" if size[0] % LANES == 0 and plan.tiling.strips == 1 else "write"
    store = _stores(kernels, add, inner_loops.storing(written).address, inner_loops.storing("add").address)
    multiply = inner_loops.plane_convolution(plane, (stride[1], stride[2])).address
    codes = loops.Codes(inner_loops.filling(stride[0]).address, multiply, store)
    source, own = plan.source(sources), plan.kernels(weights)
    loop = checks.watch(loops.convolve, sources, writes=[out], plane=plane)
    totals = np.zeros((len(targets), len(plan.tiles.places), targets.shape[1], 2))

    def part(first: int, last: int, begin: int, end: int) -> None:
        sums = thread_buffer("sums", inner_loops.ROWS, inner_loops.COLUMNS, LANES)
        buffers = thread_buffer("tile", *plan.shape), sums, thread_buffer("totals", 2, LANES)
        loop(first, last, begin, end, codes, *buffers, plan.tiles, source, own, targets, size, totals)

    run_pieces(part, *totals.shape[:3], plan.seconds)
    checks.require_written(out, kernels.nonzero_outputs)
    return totals


def _targets(out: LazyVolumes, kernels: ActiveKernels) -> np.ndarray:
    """Return the addresses (B, outputs) of the channels that have kernels."""
    if len(kernels.starts) > len(kernels.nonzero_outputs):
        return out.addresses
    return np.ascontiguousarray(out.addresses[:, kernels.nonzero_outputs])


def _stores(kernels: ActiveKernels, add: np.ndarray | None, written: int, added: int) -> np.ndarray:
    """Return what stores each output that has kernels: `added` for channels of `add`, else `written`."""
    if add is None:
        return np.full(len(kernels.starts) - 1, written, np.int64)
    return np.where(add[kernels.nonzero_outputs], added, written)


def moments(values: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return mean and variance (2, B, C) of (B, C, H, W, D), from `totals` (B, parts, C, 2) for many voxels."""
    from e2enet.network.engine import loops

    batch, channels = values.shape[:2]
    rows, voxels = batch * channels, math.prod(values.shape[2:])
    few = voxels <= FEW_VOXELS  # sums of squares are too rough if voxels hardly differ
    whole, results = values.reshape(rows, voxels), np.empty((rows, 2))
    loop = checks.watch(loops.moments)
    read = 2 * whole.size if few else totals.size
    run_rows(lambda first, last: loop(first, last, whole, totals, few, results), rows, read)
    return results.T.reshape(2, batch, channels)


class Expansion:
    """Transposed convolution whose kernel equals its stride, without bias. weights: of `kernels.gather_weights`."""

    def __init__(self, kernels: ActiveKernels, weights: np.ndarray, stride: Triple) -> None:
        self.kernels, self.weights, self.stride = kernels, weights, stride

    def __call__(self, sources: Sequence[LazyVolumes]) -> LazyVolumes:
        depth, height, width = (edge * step for edge, step in zip(sources[0].size, self.stride, strict=True))
        shape = len(sources[0].addresses), len(self.kernels.starts) - 1, height, width, depth
        signal = LazyVolumes.of(empty_volume(shape), self.kernels.nonzero_outputs)
        expand(self.kernels, self.weights, sources, signal, self.stride)
        return signal


def expand(
    kernels: ActiveKernels,
    weights: np.ndarray,
    sources: Sequence[LazyVolumes],
    out: LazyVolumes,
    stride: Triple,
    add: np.ndarray | None = None,
) -> None:
    """Write a block of stride (depth, row, column) voxels for each voxel of the sources; the rest as in `convolve`."""
    from e2enet.network.engine import loops

    plan = plan_of(kernels, sources[0].size, sources[0].size, padding=kernels.halo)
    positions, in_plane = math.prod(stride), stride[1] * stride[2]
    columns = max(1, inner_loops.ROWS * inner_loops.COLUMNS // positions)
    added, written = (inner_loops.interleaving(stride[0], in_plane, columns, how).address for how in ("add", "write"))
    store, multiply = _stores(kernels, add, written, added), inner_loops.expansion(positions, columns).address
    codes = loops.Codes(inner_loops.filling(1).address, multiply, store)
    loop, targets = checks.watch(loops.expand, sources, writes=[out]), _targets(out, kernels)
    source, own = plan.source(sources), plan.kernels(weights)

    def part(first: int, last: int, begin: int, end: int) -> None:
        buffers = thread_buffer("tile", *plan.shape), thread_buffer("sums", positions, columns, LANES)
        places = np.empty(in_plane, np.int64)
        loop(
            first, last, begin, end, codes, *buffers, plan.tiles, source, own, stride, columns, places, targets
        )  # fmt: skip

    run_pieces(part, len(targets), len(plan.tiles.places), targets.shape[1], plan.seconds)
    checks.require_written(out, kernels.nonzero_outputs)


class Pooling:
    """Max pooling with kernel = stride of the given channels, by default of all."""

    def __init__(self, stride: Triple, channels: np.ndarray | None = None) -> None:
        self.stride, self.channels = stride, channels

    def __call__(self, sources: Sequence[LazyVolumes]) -> LazyVolumes:
        from e2enet.network.engine import loops

        (source,) = sources
        batch, every = source.addresses.shape
        depth, height, width = (edge // step for edge, step in zip(source.size, self.stride, strict=True))
        channels = np.arange(every) if self.channels is None else self.channels
        out = empty_volume((batch, len(channels), height, width, depth))
        rows, places, affine = (
            out.reshape(-1, height, width, depth),
            source.places()[channels],
            source.affine[:, channels],
        )
        loop, values = checks.watch(loops.pool), source.memory[0]
        read = out.size * math.prod(self.stride)
        run_rows(lambda first, last: loop(first, last, values, places, affine, self.stride, rows), len(rows), read)
        return LazyVolumes.of(out)
