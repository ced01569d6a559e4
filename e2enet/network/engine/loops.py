"""The engine's loops over tiles, compiled by numba around the vector code of `inner_loops`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from e2enet.network.compiled import compiled
from e2enet.network.engine.inner_loops import COLUMNS, ROWS
from e2enet.network.engine.vector_code import LANES, VECTOR_BYTES
from e2enet.network.layers import Triple

ALL_LANES = (1 << LANES) - 1


class Tiles(NamedTuple):
    """Where the tiles of a volume lie; see `Tiling`.

    places: (tiles, 3) int64, vector of lanes, first row, first column, in output pixels. lane_runs: (vectors, runs, 4)
    int64, see `lane_run_table`. size: rows and columns of a tile. strip_width: columns of a strip.
    """

    places: np.ndarray
    lane_runs: np.ndarray
    size: tuple[int, int]
    strip_width: int


class TileSource(NamedTuple):
    """How a tile is filled.

    channels: (channels, 2) int64, the address of each channel's volume and its row of `slices`. affine: (channels, 3)
    float32. slices: (shifts, vectors, runs, 2) int64, the bits of `slice_bits` and the shift. size: (depth, height,
    width) of the volumes. halo: rows and columns before the first pixel. stride: (depth, row, column). clip_to_strip:
    only pixels of a tile's own strip, no neighbours.
    """

    channels: np.ndarray
    affine: np.ndarray
    slices: np.ndarray
    size: Triple
    halo: tuple[int, int]
    stride: Triple
    clip_to_strip: bool = False


class KernelList(NamedTuple):
    """Active kernels by output: those of output o are starts[o] .. starts[o + 1] - 1.

    offsets: int64, bytes from a tile's start to the channel. weights: (kernels, taps) float32.
    """

    starts: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray


class Codes(NamedTuple):
    """Addresses of functions of `inner_loops`; `store` holds one for each output."""

    fill: int
    multiply: int
    store: np.ndarray


def _call(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call a function of `inner_loops` by its address with a tuple of integers."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        function, packed = values
        unpacked = [builder.extract_value(packed, number) for number in range(len(arguments))]
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * len(unpacked))
        builder.call(builder.inttoptr(function, kind.as_pointer()), unpacked)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), generate


call: Any = intrinsic(_call)


@compiled
def fill_tile(tile, number, code, tiles, tile_source):
    """Copy the pixels that a tile's outputs read, activated and shifted along the depth; zero outside of the volume.

    tile: (channels, rows, columns, LANES).
    """
    depth, height, width = tile_source.size
    _, rows, columns, _ = tile.shape
    vector, row, column = tiles.places[number]
    first_row = row * tile_source.stride[1] - tile_source.halo[0]
    for lane_run in range(tiles.lane_runs.shape[1]):
        lane, strip, start, count = tiles.lane_runs[vector, lane_run]
        if count == 0:
            break
        # Write up to the last lane; later runs overwrite theirs. Old values in idle lanes could be slow to multiply.
        lanes = ALL_LANES & (ALL_LANES << lane)
        first_column = (column + strip * tiles.strip_width) * tile_source.stride[2] - tile_source.halo[1]
        before = min(max(-first_column, 0), columns)
        end = min(columns, width - first_column)
        if tile_source.clip_to_strip:
            end = min(end, tiles.strip_width - column)
        inside = max(end - before, 0)
        after = before + inside
        for channel in range(len(tile)):
            bits, shift = tile_source.slices[tile_source.channels[channel, 1], vector, lane_run]
            affine = tile_source.affine.ctypes.data + channel * 12
            place = tile_source.stride[0] * (start - lane) + shift
            for i in range(rows):
                line = tile.ctypes.data + (channel * rows + i) * columns * VECTOR_BYTES
                y = first_row + i
                if y < 0 or y >= height or bits == 0:
                    call(code, (line, 0, columns, 0, 0, lanes, affine))
                    continue
                pixel = tile_source.channels[channel, 0] + ((y * width + first_column + before) * depth + place) * 4
                call(code, (line, 0, before, 0, 0, lanes, affine))
                call(code, (line + before * VECTOR_BYTES, pixel, inside, depth * 4, bits, lanes, affine))
                call(code, (line + after * VECTOR_BYTES, 0, columns - after, 0, 0, lanes, affine))


@compiled
def entries_of(kernels, output):
    """Return the addresses of an output's offsets and weights, and their number."""
    begin, count = kernels.starts[output], kernels.starts[output + 1] - kernels.starts[output]
    weights = kernels.weights.ctypes.data + begin * kernels.weights.shape[1] * 4
    return kernels.offsets.ctypes.data + begin * 8, weights, count


@compiled
def convolve(first, last, codes, tile, sums, lane_totals, tiles, tile_source, kernels, targets, size, totals):
    """Convolve the tiles first .. last - 1: fill each, apply the active kernels of every output channel, store.

    tile, sums, lane_totals: memory for the tile, for ROWS x COLUMNS vectors and for two. targets: addresses of the
    outputs' volumes of `size` (depth, height, width). totals: (tiles, outputs, 2) float64, sums and squares.
    """
    depth, height, width = size
    row_bytes = tile.shape[2] * VECTOR_BYTES
    for number in range(first, last):
        fill_tile(tile, number, codes.fill, tiles, tile_source)
        vector, row, column = tiles.places[number]
        for output in range(len(targets)):
            offsets, weights, count = entries_of(kernels, output)
            lane_totals[:] = 0
            for i in range(0, min(tiles.size[0], height - row), ROWS):
                rows = min(ROWS, height - row - i)
                for j in range(0, min(tiles.size[1], tiles.strip_width - column), COLUMNS):
                    place = i * tile_source.stride[1] * row_bytes + j * tile_source.stride[2] * VECTOR_BYTES
                    source = tile.ctypes.data + place
                    call(codes.multiply, (source, offsets, weights, count, row_bytes, sums.ctypes.data))
                    for lane_run in range(tiles.lane_runs.shape[1]):
                        lane, strip, start, lanes = tiles.lane_runs[vector, lane_run]
                        x = column + j + strip * tiles.strip_width
                        columns = min(COLUMNS, width - x, tiles.strip_width - column - j)
                        if lanes == 0 or columns <= 0:
                            continue
                        target = targets[output] + (((row + i) * width + x) * depth + start - lane) * 4
                        bits = ((1 << lanes) - 1) << lane
                        written = rows, columns, width * depth * 4, depth * 4, bits
                        call(codes.store[output], (sums.ctypes.data, target, *written, lane_totals.ctypes.data))
            for lane in range(LANES):
                totals[number, output, 0] += lane_totals[0, lane]
                totals[number, output, 1] += lane_totals[1, lane]


@compiled
def expand(first, last, codes, tile, sums, tiles, tile_source, kernels, up, run, addresses, targets):
    """Transposed convolution with kernel = stride of the tiles first .. last - 1; every pixel becomes a block.

    up: the strides (depth, row, column). run: pixels of one call of `expansion`. addresses: memory for an address per
    place of a block in the plane. targets: addresses of the outputs' volumes.
    """
    depth, height, width = tile_source.size
    fine_depth, fine_width = depth * up[0], width * up[2]
    for number in range(first, last):
        fill_tile(tile, number, codes.fill, tiles, tile_source)
        vector, row, column = tiles.places[number]
        for output in range(len(targets)):
            offsets, weights, count = entries_of(kernels, output)
            for i in range(min(tiles.size[0], height - row)):
                for j in range(0, min(tiles.size[1], tiles.strip_width - column), run):
                    source = tile.ctypes.data + (i * tile.shape[2] + j) * VECTOR_BYTES
                    call(codes.multiply, (source, offsets, weights, count, sums.ctypes.data))
                    for lane_run in range(tiles.lane_runs.shape[1]):
                        lane, strip, start, lanes = tiles.lane_runs[vector, lane_run]
                        x = column + j + strip * tiles.strip_width
                        columns = min(run, width - x, tiles.strip_width - column - j, tiles.size[1] - j)
                        if lanes == 0 or columns <= 0:
                            continue
                        for b in range(up[1]):
                            for c in range(up[2]):
                                pixel = ((row + i) * up[1] + b) * fine_width + x * up[2] + c
                                place = pixel * fine_depth + (start - lane) * up[0]
                                addresses[b * up[2] + c] = targets[output] + place * 4
                        slices = lanes * up[0]
                        bits = ((1 << slices) - 1) << lane * up[0] if slices < 64 else -1
                        step = up[2] * fine_depth * 4
                        call(codes.store[output], (sums.ctypes.data, addresses.ctypes.data, columns, step, bits))


@compiled
def pool(source, affine, stride, target):
    """target = max pooling with kernel = stride of an activated channel, (H, W, D) each.

    The activation rises with its input, or falls if its scale is negative. The largest output therefore belongs to the
    largest input, or to the smallest.
    """
    sd, sh, sw = stride
    height, width, depth = target.shape
    scale, offset, slope = affine
    sign = np.float32(1) if scale >= 0 else np.float32(-1)
    for y in range(height):
        for x in range(width):
            line = target[y, x]
            line[:] = -np.inf
            for b in range(sh):
                for c in range(sw):
                    pixel = source[y * sh + b, x * sw + c]
                    for a in range(sd):
                        for z in range(depth):
                            value = sign * pixel[z * sd + a]
                            line[z] = value if value > line[z] else line[z]
            for z in range(depth):
                value = sign * line[z] * scale + offset
                line[z] = value if value > 0 else value * slope
