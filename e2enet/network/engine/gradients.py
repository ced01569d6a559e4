"""Gradients of the engine's operations: of active kernels only, and of the volumes that they read.

A volume's gradient is that of the values its readers see, after norm and activation. Activated, shifted or concatenated
volumes are not kept for it: their tiles are computed again from the convolutions' outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from e2enet.network.compiled import run_in_threads
from e2enet.network.engine import checks, gradient_inner_loops, inner_loops
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.lazy_volumes import LazyVolumes, empty_volume, unchanged
from e2enet.network.engine.sparse_layers import convolve, expand
from e2enet.network.engine.tile_plan import TilePlan, run, thread_buffer, tile_source
from e2enet.network.engine.tiling import tile_volume
from e2enet.network.engine.vector_code import LANES
from e2enet.network.layers import Triple

# A weight gradient is summed in at most this many parts, each with sums of its own.
MAX_PARTS = 64
# The memory that the sums of all parts may take together.
BYTES_OF_PARTS = 2**24
# The least work of a part, in bytes of filled tiles or in operations: each part costs some microseconds.
BYTES_PER_PART, OPERATIONS_PER_PART = 2**21, 2**26


class Gradient:
    """The gradient of a value (C, H, W, D): its readers' gradients are added as they come.

    written: bool (C,), the channels that hold a gradient.
    """

    def __init__(self, value: LazyVolumes) -> None:
        depth, height, width = value.size
        self.values = empty_volume((len(value.addresses), height, width, depth))
        self.written = np.zeros(len(value.addresses), bool)

    def signal(self) -> LazyVolumes:
        """Return all channels; those without a gradient are zeros."""
        self.values[~self.written] = 0
        self.written[:] = True
        return LazyVolumes.of(self.values)


def add_convolution(
    kernels: ActiveKernels,
    weights: np.ndarray,
    source: LazyVolumes,
    into: Sequence[Gradient],
    *,
    stride: Triple = (1, 1, 1),
    padding: tuple[int, int] = (0, 0),
) -> None:
    """Add a convolution of `source` to the gradients of concatenated values."""
    out, written = _joined(into)
    convolve(kernels, weights, [source], out, stride, padding, written)
    _note_written(into, kernels.nonzero_outputs)


def add_expansion(
    kernels: ActiveKernels, weights: np.ndarray, source: LazyVolumes, into: Sequence[Gradient], stride: Triple
) -> None:
    """Add an expansion of `source` to the gradients of concatenated values."""
    out, written = _joined(into)
    expand(kernels, weights, [source], out, stride, written)
    _note_written(into, kernels.nonzero_outputs)


def _joined(into: Sequence[Gradient]) -> tuple[LazyVolumes, np.ndarray]:
    """Return concatenated gradients, and which of their channels are written already."""
    parts = [LazyVolumes.of(part.values) for part in into]
    addresses = np.concatenate([part.addresses for part in parts])
    memory = tuple(part.values for part in into)
    whole = LazyVolumes(addresses, unchanged(len(addresses)), parts[0].size, memory)
    return whole, np.concatenate([part.written for part in into])


def _note_written(into: Sequence[Gradient], channels: np.ndarray) -> None:
    ends = np.cumsum([len(part.written) for part in into])
    for part, new in zip(into, np.split(channels, ends[:-1]), strict=True):
        part.written |= new


def correlate(
    kernels: ActiveKernels,
    sources: Sequence[LazyVolumes],
    gradient: LazyVolumes,
    *,
    stride: Triple = (1, 1, 1),
    padding: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """Return the gradients (K, taps) of a convolution's packed kernels, from its sources and its output's gradient.

    They are summed in parts that depend on sizes alone: any number of threads gives the same bits.
    """
    from e2enet.network.engine import gradient_loops

    plane, steps = kernels.plane, (stride[1], stride[2])
    outputs = np.flatnonzero(kernels.nonzero_outputs)
    tiling = tile_volume(gradient.size, len(kernels.reads) + len(outputs), plane, steps, MAX_PARTS)
    count = len(kernels.rows) * kernels.taps
    work = TilePlan(kernels, np.empty((0, kernels.taps), np.float32), sources, tiling, stride=stride, padding=padding)
    tiles = len(work.tiles.places)
    filled = 4 * tiles * (math.prod(work.shape) + len(outputs) * tiling.rows * tiling.columns * LANES)
    share = filled / BYTES_PER_PART + 2 * count * math.prod(gradient.size) / OPERATIONS_PER_PART
    parts = max(1, min(MAX_PARTS, tiles, BYTES_OF_PARTS // (4 * max(1, count)), round(share)))
    reads = np.stack([outputs, np.zeros_like(outputs)], axis=1)
    read = tile_source([gradient], reads, tiling, clip_to_strip=True)
    codes = gradient_loops.GradientCodes(
        inner_loops.filling(stride[0]).address,
        inner_loops.filling(1).address,
        gradient_inner_loops.correlation(plane, steps).address,
    )
    products = np.zeros((parts, len(kernels.rows), gradient_inner_loops.padded(kernels.taps)), np.float32)

    loop = checks.watch(gradient_loops.correlate, sources, [gradient], plane=plane)

    def part(number: int, first: int, last: int) -> None:
        tile, beside = (
            thread_buffer("tile", *work.shape),
            thread_buffer("gradient", len(outputs), tiling.rows, tiling.columns, LANES),
        )
        own = work.kernel_list._replace(weights=products[number])
        loop(first, last, codes, tile, beside, work.tiles, work.tile_source, read, own)

    run_in_threads(part, [(i, tiles * i // parts, tiles * (i + 1) // parts) for i in range(parts)])
    return products.sum(axis=0)[:, : kernels.taps]


def norm_gradient(value: LazyVolumes, gradient: LazyVolumes) -> tuple[np.ndarray, np.ndarray]:
    """Turn the gradient of an activated, normalised value into that of the value, in place.

    Returns the gradients (C,) of the norm's weight and bias.
    """
    from e2enet.network.engine import gradient_loops

    moments = value.moments
    assert moments is not None
    codes = gradient_loops.NormCodes(
        gradient_inner_loops.norm_sums().address, gradient_inner_loops.norm_gradient().address
    )
    results, voxels = np.empty((len(moments), 2)), int(np.prod(value.size))
    loop = checks.watch(gradient_loops.norm, [value], [gradient], writes=[gradient])

    def channels(first: int, last: int) -> None:
        addresses = value.addresses, gradient.addresses
        loop(first, last, codes, *addresses, voxels, value.affine, moments, results)

    run(channels, len(moments))
    return results[:, 0], results[:, 1]


def add_unpooled(source: LazyVolumes, coarse: np.ndarray, stride: Triple, into: Gradient) -> None:
    """Add the gradient of a max pooling, `coarse` (C, H / sh, W / sw, D / sd), to that of its input."""
    from e2enet.network.engine import gradient_loops

    volumes, loop = list(source.volumes()), checks.watch(gradient_loops.unpool)

    def channels(first: int, last: int) -> None:
        for channel in range(first, last):
            sign = np.float32(1 if source.affine[channel, 0] >= 0 else -1)
            target, add = into.values[channel], bool(into.written[channel])
            loop(volumes[channel], sign, stride, coarse[channel], add, target)

    run(channels, len(coarse))
    into.written[:] = True
