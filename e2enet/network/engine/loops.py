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
BLOCK = 64  # sums that a statistic is taken in: several vectors, so that they need not wait for each other


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
    """How a tile of a sample is filled.

    reads: (reads, 2) int64, the channel of each read and its row of `slices`. addresses: (B, C) int64, of the channels'
    volumes. affine: (B, C, 3) float32. slices: (shifts, vectors, runs, 2) int64, the bits of `slice_bits` and the
    shift. size: (depth, height, width) of the volumes. halo: rows and columns before the first pixel. stride: (depth,
    row, column). clip_to_strip: only pixels of a tile's own strip, no neighbours.
    """

    reads: np.ndarray
    addresses: np.ndarray
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
def fill_tile(tile, number, sample, code, tiles, tile_source):
    """Copy the pixels that a tile's outputs read, activated and shifted along the depth; zero outside of the volume.

    tile: (reads, rows, columns, LANES).
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
        for read in range(len(tile)):
            channel, shifted = tile_source.reads[read]
            bits, shift = tile_source.slices[shifted, vector, lane_run]
            affine = tile_source.affine.ctypes.data + (sample * tile_source.affine.shape[1] + channel) * 12
            place = tile_source.stride[0] * (start - lane) + shift
            for i in range(rows):
                line = tile.ctypes.data + (read * rows + i) * columns * VECTOR_BYTES
                y = first_row + i
                if y < 0 or y >= height or bits == 0:
                    call(code, (line, 0, columns, 0, 0, lanes, affine))
                    continue
                pixel = (y * width + first_column + before) * depth + place
                pixel = tile_source.addresses[sample, channel] + pixel * 4
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
def convolve(
    first, last, begin, end, codes, tile, sums, lane_totals, tiles, tile_source, kernels, targets, size, totals
):
    """Convolve the jobs first .. last - 1 for the outputs begin .. end - 1: fill a tile, apply the kernels, store.

    Job i is tile i % tiles of sample i // tiles. tile, sums, lane_totals: memory for the tile, for ROWS x COLUMNS
    vectors and for two. targets: (B, outputs), addresses of the outputs' volumes of `size` (depth, height, width).
    totals: (B, tiles, outputs, 2) float64, sums and squares.
    """
    depth, height, width = size
    row_bytes = tile.shape[2] * VECTOR_BYTES
    for job in range(first, last):
        sample, number = job // len(tiles.places), job % len(tiles.places)
        fill_tile(tile, number, sample, codes.fill, tiles, tile_source)
        vector, row, column = tiles.places[number]
        for output in range(begin, end):
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
                        target = targets[sample, output] + (((row + i) * width + x) * depth + start - lane) * 4
                        bits = ((1 << lanes) - 1) << lane
                        written = rows, columns, width * depth * 4, depth * 4, bits
                        call(codes.store[output], (sums.ctypes.data, target, *written, lane_totals.ctypes.data))
            for lane in range(LANES):
                totals[sample, number, output, 0] += lane_totals[0, lane]
                totals[sample, number, output, 1] += lane_totals[1, lane]


@compiled
def expand(first, last, begin, end, codes, tile, sums, tiles, tile_source, kernels, up, run, addresses, targets):
    """Transposed convolution with kernel = stride; jobs, outputs and `targets` as in `convolve`.

    Every pixel becomes a block. up: the strides (depth, row, column). run: pixels of one call of `expansion`.
    addresses: memory for an address per place of a block in the plane.
    """
    depth, height, width = tile_source.size
    fine_depth, fine_width = depth * up[0], width * up[2]
    for job in range(first, last):
        sample, number = job // len(tiles.places), job % len(tiles.places)
        fill_tile(tile, number, sample, codes.fill, tiles, tile_source)
        vector, row, column = tiles.places[number]
        for output in range(begin, end):
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
                                addresses[b * up[2] + c] = targets[sample, output] + place * 4
                        slices = lanes * up[0]
                        bits = ((1 << slices) - 1) << lane * up[0] if slices < 64 else -1
                        step = up[2] * fine_depth * 4
                        call(codes.store[output], (sums.ctypes.data, addresses.ctypes.data, columns, step, bits))


@compiled
def pool(first, last, values, places, affine, stride, out):
    """Max pooling with kernel = stride of activated channels: rows first .. last - 1 of `out`, (rows, H, W, D).

    Row r is channel r % C of sample r // C. values: (B, K, H, W, D). places: (C,), each channel's index in them, -1
    for a channel that is zero everywhere. affine: (B, C, 3).

    The activation rises with its input, or falls if its scale is negative. The largest output therefore belongs to the
    largest input, or to the smallest.
    """
    sd, sh, sw = stride
    _, height, width, depth = out.shape
    for row in range(first, last):
        sample, channel = row // len(places), row % len(places)
        target = out[row]
        scale, offset, slope = affine[sample, channel]
        if places[channel] < 0:
            target[:] = offset if offset > 0 else offset * slope
            continue
        source = values[sample, places[channel]]
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


@compiled
def normalise(sample, begin, end, values, totals, from_values, places, norm, eps, slope, affine, moments):
    """Let readers normalise the outputs begin .. end - 1 of a sample.

    values: (B, outputs, voxels). totals: (B, parts, outputs, 2), sums of each part and of their squares. from_values:
    take the voxels themselves instead, twice. places: (outputs,), their channels in what is written: `affine` (B, C, 3)
    float32 and `moments` (B, C, 2) float64, see `LazyVolumes`. norm: (2, C) float32, weight and bias.
    """
    voxels = values.shape[2]
    partial = np.empty(BLOCK)
    for output in range(begin, end):
        channel = places[output]
        mean, square = 0.0, 0.0
        if from_values:
            line = values[sample, output]
            mean = _power_sum(line, 0.0, False, partial) / voxels
            variance = _power_sum(line, mean, True, partial) / voxels
        else:
            for part in range(totals.shape[1]):
                mean += totals[sample, part, output, 0]
                square += totals[sample, part, output, 1]
            mean /= voxels
            variance = max(square / voxels - mean * mean, 0.0)
        rstd = 1 / np.sqrt(variance + eps)
        scale = norm[0, channel] * rstd
        moments[sample, channel, 0] = mean
        moments[sample, channel, 1] = rstd
        affine[sample, channel, 0] = scale
        affine[sample, channel, 1] = norm[1, channel] - mean * scale
        affine[sample, channel, 2] = slope


@compiled
def _power_sum(line, centre, squared, partial):
    """Return the sum of line - centre, or of its square, in float64; `partial` is memory for BLOCK sums."""
    whole = len(line) - len(line) % BLOCK
    partial[:] = 0
    for start in range(0, whole, BLOCK):
        for i in range(BLOCK):
            value = line[start + i] - centre
            partial[i] += value * value if squared else value
    for i in range(len(line) - whole):
        value = line[whole + i] - centre
        partial[i] += value * value if squared else value
    total = 0.0
    for i in range(BLOCK):
        total += partial[i]
    return total
