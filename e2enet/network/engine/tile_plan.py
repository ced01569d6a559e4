"""What the calls of a layer share: its tiles, how they are filled, where in them the kernels find channels.

Making these tables takes longer than a short layer's work. They depend on the active kernels and on sizes alone, so
they are kept with the kernels. A call adds its sources' addresses and its weights.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from e2enet.network.engine import checks, inner_loops, loops
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.lazy_volumes import LazyVolumes, empty_volume
from e2enet.network.engine.tiling import FEWEST, Tiling, lane_run_table, slice_bits, tile_volume
from e2enet.network.engine.vector_code import LANES, VECTOR_BYTES
from e2enet.network.layers import Triple

# Sizes for which a list of kernels keeps its tables. Prediction has one, validation and whole scans a few.
MAX_PLANS = 4
# What one thread does in a second: multiplications and additions of active kernels, and bytes of filled tiles. For the
# cut into pieces alone; results do not depend on it. Measured on CPUs with AVX-512 (docs/engine.md).
OPERATIONS, FILLED_BYTES = 1.2e11, 1.5e10

_lock = threading.Lock()


class TilePlan:
    """The tables of a list of kernels for outputs and sources of one size, (D, H, W).

    Args:
        kernels: the active kernels.
        size: the volume that is cut into tiles.
        source_size: the volumes that the tiles are filled from.
        stride: of the tiles' pixels in the sources (depth, row, column).
        padding: rows and columns before the first pixel.
        beside: channels of a second tile, which is filled beside the first.
        fewest: tiles that there should be at least.

    Attributes:
        shape: of a tile's memory.
        codes: the functions that a call uses, kept by the layer that makes it.
        seconds: how long a thread fills the tiles of a sample, and multiplies. A rough estimate.
    """

    def __init__(
        self,
        kernels: ActiveKernels,
        size: Triple,
        source_size: Triple,
        stride: Triple,
        padding: tuple[int, int],
        beside: int,
        fewest: int,
    ) -> None:
        reads = len(kernels.reads)
        tiling = tile_volume(size, reads + beside, kernels.plane, (stride[1], stride[2]), fewest)
        rows, columns = (
            (edge - 1) * step + tap
            for edge, step, tap in zip((tiling.rows, tiling.columns), stride[1:], kernels.plane, strict=True)
        )
        self.tiling, self.source_size, self.stride, self.padding = tiling, source_size, stride, padding
        self.shape = (reads, rows, columns, LANES)
        lane_runs = lane_run_table(tiling.lane_runs())
        self.tiles = loops.Tiles(tiling.tiles(), lane_runs, (tiling.rows, tiling.columns), tiling.strip_width)
        self.reads, self.slices = read_tables(kernels.reads, tiling, stride[0], source_size[0])
        self.codes: loops.Codes | None = None  # what the layer calls if it adds to no volume
        self.starts, self.offsets = kernels.starts, kernels.tile_offsets(rows, columns) * VECTOR_BYTES
        vectors = len(self.tiles.places) * tiling.rows * tiling.columns
        filled = 4 * len(self.tiles.places) * prod(self.shape)
        self.seconds = filled / FILLED_BYTES, 2 * LANES * vectors * len(kernels.rows) * kernels.taps / OPERATIONS

    def source(self, sources: Sequence[LazyVolumes]) -> Any:
        """Return how tiles are filled from concatenated sources, a `loops.TileSource`."""
        addresses, affine = joined(sources)
        return loops.TileSource(
            self.reads, addresses, affine, self.slices, self.source_size, self.padding, self.stride, False
        )

    def kernels(self, weights: np.ndarray) -> Any:
        """Return the kernels with their weights (K, taps), a `loops.KernelList`."""
        return loops.KernelList(self.starts, self.offsets, weights)


def plan_of(
    kernels: ActiveKernels,
    size: Triple,
    source_size: Triple,
    *,
    stride: Triple = (1, 1, 1),
    padding: tuple[int, int] = (0, 0),
    beside: int = 0,
    fewest: int = FEWEST,
) -> TilePlan:
    """Return the plan for these sizes, made once and kept with the kernels; arguments as in `TilePlan`."""
    key = size, source_size, stride, padding, beside, fewest
    plan: TilePlan | None = kernels.plans.get(key)
    if plan is None:
        plan = TilePlan(kernels, *key)
        with _lock:  # passes of several threads may share the kernels
            while len(kernels.plans) >= MAX_PLANS:
                del kernels.plans[next(iter(kernels.plans))]
            kernels.plans[key] = plan
    return plan


def read_tables(reads: np.ndarray, tiling: Tiling, stride: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `reads` and `slices` of a `loops.TileSource`. reads: (R, 2), channel and slices further.

    stride: along the depth. depth: slices of the source.
    """
    channels, moved = reads.T
    shifts, numbers = np.unique(moved, return_inverse=True)
    vectors = tiling.lane_runs()
    slices = np.zeros((len(shifts), *lane_run_table(vectors).shape[:2], 2), np.int64)
    for row, shift in zip(slices, shifts.tolist(), strict=True):
        for line, vector in zip(row, vectors, strict=True):
            for cell, lane_run in zip(line, vector, strict=False):
                cell[:] = slice_bits(lane_run, shift, stride, depth), shift
    return np.stack([channels, numbers.reshape(-1)], axis=1).astype(np.int64), slices


def joined(sources: Sequence[LazyVolumes]) -> tuple[np.ndarray, np.ndarray]:
    """Return addresses (B, C) and affine (B, C, 3) of concatenated sources."""
    if len(sources) == 1:
        return sources[0].addresses, sources[0].affine
    addresses = np.concatenate([source.addresses for source in sources], axis=1)
    return addresses, np.concatenate([source.affine for source in sources], axis=1)


_memory = threading.local()


def thread_buffer(use: str, *shape: int) -> np.ndarray:
    """Return this thread's memory for `use`: uninitialised float32, aligned to vectors."""
    if checks.ON:  # anew each time: guard values, which may be read, follow directly
        return empty_volume(shape)
    buffers: dict[str, dict[tuple[int, ...], np.ndarray]] = _memory.__dict__.setdefault("buffers", {})
    views = buffers.setdefault(use, {(): np.empty(0, np.float32)})  # by shape; the whole memory is that of ()
    if shape not in views:
        count = prod(shape)
        # The last pixels are read several at a time, past the end of the tile.
        needed = count + inner_loops.ROWS * inner_loops.COLUMNS * LANES
        if views[()].size < needed:
            views.clear()
            views[()] = empty_volume((needed,))
        views[shape] = views[()][:count].reshape(shape)
    return views[shape]
