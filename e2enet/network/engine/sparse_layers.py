"""Layers of the engine: lists of active kernels, and how they run on volumes (B, C, H, W, D).

A convolution's output is kept as it is. The instance norm and the activation that follow are three numbers per channel,
which every reader applies as it loads. Concatenated, shifted or normalised volumes are never written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from e2enet.network.compiled import run_in_threads
from e2enet.network.engine import checks, inner_loops, loops
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.hand_out import pieces_of, run_rows, whole_samples
from e2enet.network.engine.lazy_volumes import LazyVolumes, Norm, empty_volume
from e2enet.network.engine.pending_norm import PendingNorm
from e2enet.network.engine.tile_plan import TilePlan, plan_of, thread_buffer
from e2enet.network.engine.vector_code import LANES
from e2enet.network.layers import Triple


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
        depth, height, width = self.size(sources[0].size)
        batch, nonzero = len(sources[0].addresses), self.kernels.nonzero_outputs
        values = empty_volume((batch, len(self.kernels.places), height, width, depth))
        affine = None if self.norm is None else np.empty((batch, len(nonzero), 3), np.float32)  # PendingNorm sets it
        out = LazyVolumes.of(values, nonzero, affine)
        call = ConvolutionCall(self.kernels, self.weights, sources, out, self.stride, self.padding)
        norm = None if self.norm is None else PendingNorm(out, values, call.totals, self.norm, self.kernels.places)
        call.run(norm)
        return out

    def size(self, source: Triple) -> Triple:
        """Return the output's (D, H, W) for that of the sources."""
        return _output_size(source, self.kernels.plane, self.stride, self.padding)


@lru_cache(maxsize=256)
def _output_size(size: Triple, plane: tuple[int, int], stride: Triple, padding: tuple[int, int]) -> Triple:
    """Return (D, H, W) of a convolution's output. The shift, or a kernel of several slices, keeps the depth."""
    depth, height, width = (
        (edge + 2 * pad - tap) // step + 1
        for edge, pad, tap, step in zip(size, (0, *padding), (1, *plane), stride, strict=True)
    )
    return depth, height, width


def convolve(
    kernels: ActiveKernels,
    weights: np.ndarray,
    sources: Sequence[LazyVolumes],
    out: LazyVolumes,
    stride: Triple,
    padding: tuple[int, int],
    add: np.ndarray | None = None,
) -> None:
    """Write the sums of a convolution into the volumes of `out`, for outputs that have kernels.

    add: for which channels of `out` sums are added to the volumes' values.
    """
    ConvolutionCall(kernels, weights, sources, out, stride, padding, add).run()


class ConvolutionCall:
    """One call of `convolve`.

    totals: of each written output's sums and of their squares, float64 (B, tiles, outputs, 2).
    """

    def __init__(
        self,
        kernels: ActiveKernels,
        weights: np.ndarray,
        sources: Sequence[LazyVolumes],
        out: LazyVolumes,
        stride: Triple,
        padding: tuple[int, int],
        add: np.ndarray | None = None,
    ) -> None:
        size, plane = out.size, kernels.plane
        self.kernels, self.out = kernels, out
        self.plan = plan = plan_of(kernels, size, sources[0].size, stride=stride, padding=padding)
        if add is None and plan.codes is not None:
            codes = plan.codes
        else:
            codes = _codes(kernels, plan, stride, add)
            plan.codes = codes if add is None else plan.codes
        self.targets = _targets(out, kernels)
        self.totals = np.zeros((len(self.targets), len(plan.tiles.places), self.targets.shape[1], 2))
        self._loop = checks.watch(loops.convolve, sources, writes=[out], plane=plane)
        self._codes = codes
        self._given = plan.tiles, plan.source(sources), plan.kernels(weights), self.targets, size, self.totals

    def run(self, norm: PendingNorm | None = None) -> None:
        """Write the outputs. With `norm`, finish it too."""
        samples, tiles, outputs, _ = self.totals.shape

        def part(first: int, last: int, begin: int, end: int) -> None:
            sums = thread_buffer("sums", inner_loops.ROWS, inner_loops.COLUMNS, LANES)
            buffers = thread_buffer("tile", *self.plan.shape), sums, thread_buffer("totals", 2, LANES)
            self._loop(first, last, begin, end, self._codes, *buffers, *self._given)
            if norm is not None and last <= whole * tiles:  # its values are still in this core's cache
                for sample in range(first // tiles, last // tiles):
                    norm.finish(sample, 0, outputs)

        pieces = pieces_of(samples, tiles, outputs, self.plan.seconds)
        whole = whole_samples(pieces, tiles, outputs)
        run_in_threads(part, pieces)
        if norm is not None:
            norm.finish_from(whole)
        checks.require_written(self.out, self.kernels.nonzero_outputs)


def _codes(kernels: ActiveKernels, plan: TilePlan, stride: Triple, add: np.ndarray | None) -> loops.Codes:
    """Return the functions that a convolution calls; add: of `convolve`."""
    whole = plan.tiling.depth % LANES == 0 and plan.tiling.strips == 1
    store = inner_loops.storing("stream" if whole else "write").address
    return loops.Codes(
        inner_loops.filling(stride[0]).address,
        inner_loops.plane_convolution(kernels.plane, (stride[1], stride[2])).address,
        _stores(kernels, add, store, inner_loops.storing("add").address),
    )


def _targets(out: LazyVolumes, kernels: ActiveKernels) -> np.ndarray:
    """Return the addresses (B, outputs) of the channels that have kernels."""
    if len(kernels.places) == len(kernels.nonzero_outputs):
        return out.addresses
    return np.ascontiguousarray(out.addresses[:, kernels.places])


def _stores(kernels: ActiveKernels, add: np.ndarray | None, written: int, added: int) -> np.ndarray:
    """Return what stores each output that has kernels: `added` for channels of `add`, else `written`."""
    if add is None:
        return np.full(len(kernels.places), written, np.int64)
    return np.where(add[kernels.places], added, written)


class Expansion:
    """Transposed convolution whose kernel equals its stride, without bias. weights: of `kernels.gather_weights`."""

    def __init__(self, kernels: ActiveKernels, weights: np.ndarray, stride: Triple) -> None:
        self.kernels, self.weights, self.stride = kernels, weights, stride

    def __call__(self, sources: Sequence[LazyVolumes]) -> LazyVolumes:
        depth, height, width = self.size(sources[0].size)
        values = empty_volume((len(sources[0].addresses), len(self.kernels.places), height, width, depth))
        signal = LazyVolumes.of(values, self.kernels.nonzero_outputs)
        expand(self.kernels, self.weights, sources, signal, self.stride)
        return signal

    def size(self, source: Triple) -> Triple:
        """Return the output's (D, H, W) for that of the sources."""
        depth, height, width = (edge * step for edge, step in zip(source, self.stride, strict=True))
        return depth, height, width


def expand(
    kernels: ActiveKernels,
    weights: np.ndarray,
    sources: Sequence[LazyVolumes],
    out: LazyVolumes,
    stride: Triple,
    add: np.ndarray | None = None,
) -> None:
    """Write a block of stride (depth, row, column) voxels for each voxel of the sources; the rest as in `convolve`."""
    plan = plan_of(kernels, sources[0].size, sources[0].size, padding=kernels.halo)
    positions, in_plane = math.prod(stride), stride[1] * stride[2]
    columns = max(1, inner_loops.ROWS * inner_loops.COLUMNS // positions)
    codes = plan.codes
    if add is not None or codes is None:
        added, written = (
            inner_loops.interleaving(stride[0], in_plane, columns, how).address for how in ("add", "write")
        )
        multiply = inner_loops.expansion(positions, columns).address
        codes = loops.Codes(inner_loops.filling(1).address, multiply, _stores(kernels, add, written, added))
        plan.codes = codes if add is None else plan.codes
    loop, targets = checks.watch(loops.expand, sources, writes=[out]), _targets(out, kernels)
    source, own = plan.source(sources), plan.kernels(weights)

    def part(first: int, last: int, begin: int, end: int) -> None:
        buffers = thread_buffer("tile", *plan.shape), thread_buffer("sums", positions, columns, LANES)
        places = np.empty(in_plane, np.int64)
        loop(
            first, last, begin, end, codes, *buffers, plan.tiles, source, own, stride, columns, places, targets
        )  # fmt: skip

    run_in_threads(part, pieces_of(len(targets), len(plan.tiles.places), targets.shape[1], plan.seconds))
    checks.require_written(out, kernels.nonzero_outputs)


class Pooling:
    """Max pooling with kernel = stride of the given channels (int64), by default of all."""

    def __init__(self, stride: Triple, channels: np.ndarray | None = None) -> None:
        self.stride, self.channels = stride, channels

    def __call__(self, sources: Sequence[LazyVolumes]) -> LazyVolumes:
        (source,) = sources
        batch, every = source.addresses.shape
        depth, height, width = self.size(source.size)
        channels = np.arange(every) if self.channels is None else self.channels
        out = empty_volume((batch, len(channels), height, width, depth))
        rows = out.reshape(-1, height, width, depth)
        places, affine = source.places()[channels], source.affine[:, channels]
        loop, values = checks.watch(loops.pool), source.memory[0]
        read = out.size * math.prod(self.stride)
        run_rows(lambda first, last: loop(first, last, values, places, affine, self.stride, rows), len(rows), read)
        return LazyVolumes.of(out)

    def size(self, source: Triple) -> Triple:
        """Return the output's (D, H, W) for that of the source."""
        depth, height, width = (edge // step for edge, step in zip(source, self.stride, strict=True))
        return depth, height, width
