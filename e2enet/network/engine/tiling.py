"""How a volume is cut into tiles: lanes along the depth, rows and columns of the plane.

Volumes lie in memory as (C, H, W, D), depth innermost. A vector of LANES holds depth slices of one pixel. If the volume
has fewer slices than a vector has lanes, or a number that leaves many lanes idle, the plane's columns are cut into
`strips` parts, which lie side by side in the lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil

import numpy as np

from e2enet.network.engine.inner_loops import COLUMNS, ROWS
from e2enet.network.engine.vector_code import LANES, VECTOR_BYTES

TILE_BYTES = 2**20  # of all channels of a tile: half of a level-2 cache of 2 MiB
LARGEST = 16  # rows or columns of a tile
MAX_STRIPS = 8
FEWEST = 16  # tiles, for as many threads


@dataclass(frozen=True)
class LaneRun:
    """Consecutive lanes of a vector: slices start .. start + count - 1 of one strip of the plane."""

    lane: int
    strip: int
    start: int
    count: int


@dataclass(frozen=True)
class Tiling:
    """Tiles of a plane (height, width), in output pixels, and vectors of lanes."""

    depth: int
    height: int
    width: int
    strips: int
    rows: int
    columns: int

    @property
    def strip_width(self) -> int:
        """Columns of one strip; the last strip may have fewer."""
        return ceil(self.width / self.strips)

    def lane_runs(self) -> list[list[LaneRun]]:
        """Return the runs of every vector of lanes."""
        vectors = []
        for first in range(0, self.strips * self.depth, LANES):
            lane_runs, place = [], first
            while place < min(first + LANES, self.strips * self.depth):
                strip, start = divmod(place, self.depth)
                count = min(self.depth - start, first + LANES - place)
                lane_runs.append(LaneRun(place - first, strip, start, count))
                place += count
            vectors.append(lane_runs)
        return vectors

    def tiles(self) -> np.ndarray:
        """Return (vector, first row, first column) of every tile, int64."""
        vectors = range(ceil(self.strips * self.depth / LANES))
        rows, columns = range(0, self.height, self.rows), range(0, self.strip_width, self.columns)
        return np.array([(vector, row, column) for row in rows for column in columns for vector in vectors], np.int64)


@cache
def tile_volume(
    size: tuple[int, int, int], channels: int, kernel: tuple[int, int], stride: tuple[int, int], fewest: int = FEWEST
) -> Tiling:
    """Return the tiling of an output (D, H, W) that reads `channels` channels by a plane kernel and stride.

    It has `fewest` tiles or more, if the plane is large enough. It does not depend on the number of threads: statistics
    are summed by tiles, so another tiling would give other bits.
    """
    depth, height, width = size
    strips = _strips(depth, width)
    strip_width = ceil(width / strips)
    vectors = ceil(strips * depth / LANES)

    def halo(rows: int, columns: int) -> int:
        return ((rows - 1) * stride[0] + kernel[0]) * ((columns - 1) * stride[1] + kernel[1])

    best = None
    for rows in range(ROWS, min(LARGEST, ceil(height / ROWS) * ROWS) + 1, ROWS):
        for columns in range(COLUMNS, min(LARGEST, ceil(strip_width / COLUMNS) * COLUMNS) + 1, COLUMNS):
            count = ceil(height / rows) * ceil(strip_width / columns)
            fits = channels * halo(rows, columns) * VECTOR_BYTES <= TILE_BYTES
            shared = count * vectors >= fewest
            rank = (fits or rows * columns == ROWS * COLUMNS, shared, -count * halo(rows, columns), -count)
            if best is None or rank > best[0]:
                best = (rank, rows, columns)
    assert best is not None
    return Tiling(depth, height, width, strips, best[1], best[2])


def _strips(depth: int, width: int) -> int:
    """Return the number of strips that leaves the fewest lanes and columns idle."""

    def cost(strips: int) -> int:
        return ceil(strips * depth / LANES) * ceil(ceil(width / strips) / COLUMNS)

    return min(range(1, min(MAX_STRIPS, width) + 1), key=cost)


def slice_bits(lane_run: LaneRun, shift: int, stride: int, depth: int) -> int:
    """Return which source slices the lanes of a run read, one bit per slice from lane 0's on.

    Lane `lane_run.lane + i` reads slice stride * (lane_run.start + i) + shift of a source of `depth` slices; outside it
    nothing is read. Bit stride * lane stands for a lane's slice.
    """
    bits = 0
    for i in range(lane_run.count):
        if 0 <= stride * (lane_run.start + i) + shift < depth:
            bits |= 1 << (stride * (lane_run.lane + i))
    return bits


def lane_run_table(vectors: Sequence[Sequence[LaneRun]]) -> np.ndarray:
    """Return (vectors, most runs, 4) int64: lane, strip, start, count; count 0 if a vector has fewer runs."""
    table = np.zeros((len(vectors), max(map(len, vectors)), 4), np.int64)
    for line, lane_runs in zip(table, vectors, strict=True):
        for row, lane_run in zip(line, lane_runs, strict=False):
            row[:] = lane_run.lane, lane_run.strip, lane_run.start, lane_run.count
    return table
