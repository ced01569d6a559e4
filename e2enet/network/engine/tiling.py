"""How a volume is cut into tiles: lanes along the depth, rows and columns of the plane.

Volumes lie in memory as (C, H, W, D), depth innermost. A vector of LANES holds depth slices of one pixel. Where the
volume has fewer slices than a vector has lanes, or a number that leaves many lanes idle, the plane is folded: its
columns are cut into `folds` parts that lie side by side in the lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil

import numpy as np

from e2enet.network.engine.microkernels import COLUMNS, ROWS
from e2enet.network.engine.vector_code import LANES, VECTOR_BYTES

TILE_BYTES = 2**20  # of all channels of a tile: half of a level-2 cache of 2 MiB
LARGEST = 16  # rows or columns of a tile
MOST_FOLDS = 8


@dataclass(frozen=True)
class Piece:
    """Consecutive lanes of a vector: slices start .. start + count - 1 of one fold of the plane."""

    lane: int
    fold: int
    start: int
    count: int


@dataclass(frozen=True)
class Tiling:
    """Tiles of a plane (height, width), in output pixels, and vectors of lanes."""

    depth: int
    height: int
    width: int
    folds: int
    rows: int
    columns: int

    @property
    def fold_width(self) -> int:
        """Columns of one fold, the last of which may be shorter."""
        return ceil(self.width / self.folds)

    def pieces(self) -> list[list[Piece]]:
        """The pieces of every vector of lanes."""
        vectors = []
        for first in range(0, self.folds * self.depth, LANES):
            pieces, place = [], first
            while place < min(first + LANES, self.folds * self.depth):
                fold, start = divmod(place, self.depth)
                count = min(self.depth - start, first + LANES - place)
                pieces.append(Piece(place - first, fold, start, count))
                place += count
            vectors.append(pieces)
        return vectors

    def tiles(self) -> np.ndarray:
        """(vector, first row, first column) of every tile, int64."""
        vectors = range(ceil(self.folds * self.depth / LANES))
        rows, columns = range(0, self.height, self.rows), range(0, self.fold_width, self.columns)
        return np.array([(vector, row, column) for row in rows for column in columns for vector in vectors], np.int64)


@cache
def tile_volume(
    size: tuple[int, int, int], channels: int, kernel: tuple[int, int], stride: tuple[int, int], workers: int
) -> Tiling:
    """The tiling of an output (D, H, W) that reads so many channels by a kernel and a stride of the plane."""
    depth, height, width = size
    folds = _folds(depth, width)
    fold_width = ceil(width / folds)
    vectors = ceil(folds * depth / LANES)

    def halo(rows: int, columns: int) -> int:
        return ((rows - 1) * stride[0] + kernel[0]) * ((columns - 1) * stride[1] + kernel[1])

    best = None
    for rows in range(ROWS, min(LARGEST, ceil(height / ROWS) * ROWS) + 1, ROWS):
        for columns in range(COLUMNS, min(LARGEST, ceil(fold_width / COLUMNS) * COLUMNS) + 1, COLUMNS):
            count = ceil(height / rows) * ceil(fold_width / columns)
            fits = channels * halo(rows, columns) * VECTOR_BYTES <= TILE_BYTES
            shared = count * vectors >= 2 * workers
            rank = (fits or rows * columns == ROWS * COLUMNS, shared, -count * halo(rows, columns), -count)
            if best is None or rank > best[0]:
                best = (rank, rows, columns)
    assert best is not None
    return Tiling(depth, height, width, folds, best[1], best[2])


def _folds(depth: int, width: int) -> int:
    """The number of folds that leaves the fewest lanes and columns idle."""

    def cost(folds: int) -> int:
        return ceil(folds * depth / LANES) * ceil(ceil(width / folds) / COLUMNS)

    return min(range(1, min(MOST_FOLDS, width) + 1), key=cost)


def slice_bits(piece: Piece, shift: int, stride: int, depth: int) -> int:
    """Which slices of the source the lanes of a piece read, one bit per slice from lane 0's on.

    Lane `piece.lane + i` reads slice stride * (piece.start + i) + shift of a source of `depth` slices; outside of it
    nothing is read. Bit stride * lane stands for a lane's slice.
    """
    bits = 0
    for i in range(piece.count):
        if 0 <= stride * (piece.start + i) + shift < depth:
            bits |= 1 << (stride * (piece.lane + i))
    return bits


def piece_table(vectors: Sequence[Sequence[Piece]]) -> np.ndarray:
    """(vectors, most pieces, 4) int64: lane, fold, start, count; count 0 where a vector has fewer pieces."""
    table = np.zeros((len(vectors), max(map(len, vectors)), 4), np.int64)
    for line, pieces in zip(table, vectors, strict=True):
        for row, piece in zip(line, pieces, strict=False):
            row[:] = piece.lane, piece.fold, piece.start, piece.count
    return table
