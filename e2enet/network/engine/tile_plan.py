"""One call of a layer: its tiles, how they are filled from its sources, and how threads share them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from e2enet.network.compiled import run_in_threads
from e2enet.network.engine import checks, inner_loops
from e2enet.network.engine.active import ActiveKernels
from e2enet.network.engine.lazy_volumes import LazyVolumes, empty_volume
from e2enet.network.engine.tiling import Tiling, lane_run_table, slice_bits
from e2enet.network.engine.vector_code import LANES, VECTOR_BYTES
from e2enet.network.layers import Triple


class TilePlan:
    """The tiles of one call, how they are filled from its sources, and where in them the kernels find channels.

    weights: (K, taps) of the kernels' entries. padding: of the plane.
    """

    def __init__(
        self,
        kernels: ActiveKernels,
        weights: np.ndarray,
        sources: Sequence[LazyVolumes],
        tiling: Tiling,
        *,
        stride: Triple = (1, 1, 1),
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        from e2enet.network.engine import loops

        rows, columns = (
            (edge - 1) * step + tap
            for edge, step, tap in zip((tiling.rows, tiling.columns), stride[1:], kernels.plane, strict=True)
        )
        self.shape = (len(kernels.reads), rows, columns, LANES)
        lane_runs = lane_run_table(tiling.lane_runs())
        self.tiles = loops.Tiles(tiling.tiles(), lane_runs, (tiling.rows, tiling.columns), tiling.strip_width)
        self.tile_source = tile_source(sources, kernels.reads, tiling, stride=stride, padding=padding)
        offsets = kernels.tile_offsets(rows, columns) * VECTOR_BYTES
        self.kernel_list = loops.KernelList(kernels.starts, offsets, weights)


def tile_source(
    sources: Sequence[LazyVolumes],
    reads: np.ndarray,
    tiling: Tiling,
    *,
    stride: Triple = (1, 1, 1),
    padding: tuple[int, int] = (0, 0),
    clip_to_strip: bool = False,
) -> Any:
    """Return how concatenated sources fill tiles, a `loops.TileSource`. reads: (R, 2), channel and slices further."""
    from e2enet.network.engine import loops

    channel, shift = reads.T
    shifts, numbers = np.unique(shift, return_inverse=True)
    vectors = tiling.lane_runs()
    slices = np.zeros((len(shifts), *lane_run_table(vectors).shape[:2], 2), np.int64)
    for row, moved in zip(slices, shifts.tolist(), strict=True):
        for line, vector in zip(row, vectors, strict=True):
            for cell, lane_run in zip(line, vector, strict=False):
                cell[:] = slice_bits(lane_run, moved, stride[0], sources[0].size[0]), moved
    addresses = np.concatenate([source.addresses for source in sources])[channel]
    affine = np.ascontiguousarray(np.concatenate([source.affine for source in sources])[channel])
    table = np.stack([addresses, numbers.reshape(-1)], axis=1)
    return loops.TileSource(table, affine, slices, sources[0].size, padding, stride, clip_to_strip)


_memory = threading.local()


def thread_buffer(use: str, *shape: int) -> np.ndarray:
    """Return this thread's memory for `use`: uninitialised float32, aligned to vectors."""
    if checks.ON:  # anew each time: guard values, which may be read, follow directly
        return empty_volume(shape)
    count = int(np.prod(shape))
    # The last pixels are read several at a time, past the end of the tile.
    needed = count + inner_loops.ROWS * inner_loops.COLUMNS * LANES
    buffers: dict[str, np.ndarray] = _memory.__dict__.setdefault("rooms", {})
    if use not in buffers or buffers[use].size < needed:
        buffers[use] = empty_volume((needed,))
    return buffers[use][:count].reshape(shape)


def run(work: Callable[[int, int], Any], count: int) -> None:
    """Call `work(first, last)` for parts of 0 .. count, on as many threads as torch uses."""
    threads = torch.get_num_threads()
    parts = min(count, 1 if threads == 1 else 4 * threads)
    edges = [count * part // parts for part in range(parts + 1)]
    run_in_threads(work, list(pairwise(edges)))
