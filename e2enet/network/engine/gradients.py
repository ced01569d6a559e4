"""Gradients of the engine's operations: of active kernels only, and of the volumes that they read.

A volume's gradient is that of the values its readers see, after norm and activation. Activated, shifted or concatenated
volumes are not kept for it: their tiles are computed again from the convolutions' outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from e2enet.network.compiled import run_in_threads
from e2enet.network.engine import checks, gradient_inner_loops, inner_loops
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.hand_out import ranges, run_rows
from e2enet.network.engine.lazy_volumes import LazyVolumes, empty_volume, unchanged
from e2enet.network.engine.sparse_layers import convolve, expand
from e2enet.network.engine.tile_plan import TilePlan, plan_of, read_tables, thread_buffer
from e2enet.network.engine.vector_code import LANES
from e2enet.network.layers import Triple

# A weight gradient is summed in at most this many parts, each with sums of its own.
MAX_PARTS = 64
# The memory that the sums of all parts may take together.
BYTES_OF_PARTS = 2**24
# The least work of a part, in bytes of filled tiles or in operations: each part costs some microseconds.
BYTES_PER_PART, OPERATIONS_PER_PART = 2**21, 2**26


class Gradient:
    """The gradient of a value (B, C, H, W, D): its readers' gradients are added as they come.

    written: bool (C,), the channels that hold a gradient.
    """

    def __init__(self, value: LazyVolumes) -> None:
        depth, height, width = value.size
        self.values = empty_volume((*value.addresses.shape, height, width, depth))
        self.written = np.zeros(value.addresses.shape[1], bool)

    def signal(self) -> LazyVolumes:
        """Return all channels; those without a gradient are zeros."""
        self.values[:, ~self.written] = 0
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
    addresses = np.concatenate([part.addresses for part in parts], axis=1)
    memory = tuple(part.values for part in into)
    whole = LazyVolumes(addresses, unchanged(*addresses.shape), parts[0].size, memory)
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

    They are summed in parts that depend on sizes alone, first those of each sample: any number of threads gives the
    same bits, and so does one sample at a time.
    """
    from e2enet.network.engine import gradient_loops

    plane, steps = kernels.plane, (stride[1], stride[2])
    outputs = np.flatnonzero(kernels.nonzero_outputs)
    plan = plan_of(
        kernels, gradient.size, sources[0].size, stride=stride, padding=padding, beside=len(outputs),
        fewest=2 * MAX_PARTS,
    )  # fmt: skip
    tiling, parts = plan.tiling, _parts(plan, len(outputs), len(kernels.rows) * kernels.taps, gradient.size)
    source, read = plan.source(sources), _beside(plan, gradient, outputs)
    codes = gradient_loops.GradientCodes(
        inner_loops.filling(stride[0]).address,
        inner_loops.filling(1).address,
        gradient_inner_loops.correlation(plane, steps).address,
    )
    loop = checks.watch(gradient_loops.correlate, sources, [gradient], plane=plane)
    batch, padded = len(gradient.addresses), gradient_inner_loops.padded(kernels.taps)
    products = np.empty((min(batch, torch.get_num_threads()), parts, len(kernels.rows), padded), np.float32)
    total: np.ndarray | None = None

    def part(row: int, sample: int, number: int, first: int, last: int) -> None:
        beside = thread_buffer("gradient", len(outputs), tiling.rows, tiling.columns, LANES)
        own = products[row, number]
        own[:] = 0
        listed = plan.kernels(own)
        loop(sample, first, last, codes, thread_buffer("tile", *plan.shape), beside, plan.tiles, source, read, listed)

    for start in range(0, batch, len(products)):  # some samples at once: the memory of all would grow with the batch
        samples = range(start, min(start + len(products), batch))
        cuts = ranges(len(plan.tiles.places), parts)
        run_in_threads(part, [(s - start, s, i, *edges) for s in samples for i, edges in enumerate(cuts)])
        for row in range(len(samples)):
            own = _sum_of_parts(products[row])
            total = own if total is None else total + own
    assert total is not None
    return total[:, : kernels.taps]


def _parts(plan: TilePlan, outputs: int, count: int, size: Triple) -> int:
    """Return in how many parts a sample's products of `count` weights with a gradient of this size are summed."""
    tiles, tiling = len(plan.tiles.places), plan.tiling
    filled = 4 * tiles * (math.prod(plan.shape) + outputs * tiling.rows * tiling.columns * LANES)
    share = filled / BYTES_PER_PART + 2 * count * math.prod(size) / OPERATIONS_PER_PART
    return max(1, min(MAX_PARTS, tiles, BYTES_OF_PARTS // (4 * max(1, count)), round(share)))


def _beside(plan: TilePlan, gradient: LazyVolumes, outputs: np.ndarray) -> Any:
    """Return how tiles of the gradients of these outputs are filled, a `loops.TileSource`."""
    from e2enet.network.engine import loops

    reads, slices = read_tables(np.stack([outputs, np.zeros_like(outputs)], axis=1), plan.tiling, 1, gradient.size[0])
    return loops.TileSource(
        reads, gradient.addresses, gradient.affine, slices, gradient.size, (0, 0), (1, 1, 1), clip_to_strip=True
    )


def _sum_of_parts(products: np.ndarray) -> np.ndarray:
    """Return the sum of (parts, K, taps) over the parts, one after the other."""
    total = np.empty(products.shape[1:], np.float32)
    run_rows(lambda first, last: products[:, first:last].sum(axis=0, out=total[first:last]), len(total), products.size)
    return total


def norm_gradient(value: LazyVolumes, gradient: LazyVolumes) -> tuple[np.ndarray, np.ndarray]:
    """Turn the gradient of an activated, normalised value into that of the value, in place.

    Returns the gradients (C,) of the norm's weight and bias.
    """
    from e2enet.network.engine import gradient_loops

    assert value.moments is not None
    codes = gradient_loops.NormCodes(
        gradient_inner_loops.norm_sums().address, gradient_inner_loops.norm_gradient().address
    )
    results, voxels = np.empty((value.addresses.size, 2)), math.prod(value.size)
    loop = checks.watch(gradient_loops.norm, [value], [gradient], writes=[gradient])
    addresses = value.addresses.ravel(), gradient.addresses.ravel()
    affine, moments = value.affine.reshape(-1, 3), value.moments.reshape(-1, 2)

    def rows(first: int, last: int) -> None:
        loop(first, last, codes, *addresses, voxels, affine, moments, results)

    run_rows(rows, len(results), 3 * voxels * len(results))
    weight, bias = results.reshape(*value.addresses.shape, 2).sum(axis=0).T
    return weight, bias


def add_unpooled(source: LazyVolumes, coarse: np.ndarray, stride: Triple, into: Gradient) -> None:
    """Add the gradient of a max pooling, `coarse` (B, C, H / sh, W / sw, D / sd), to that of its input."""
    from e2enet.network.engine import gradient_loops

    loop, places = checks.watch(gradient_loops.unpool), source.places()
    values, affine = source.memory[0], source.affine
    flat, targets = (array.reshape(-1, *array.shape[2:]) for array in (coarse, into.values))

    def rows(first: int, last: int) -> None:
        loop(first, last, values, places, affine, stride, flat, into.written, targets)

    run_rows(rows, len(targets), 2 * into.values.size)
    into.written[:] = True
