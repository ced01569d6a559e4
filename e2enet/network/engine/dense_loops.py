"""Compiled loops between the engine's volumes (C, H, W, D) and those that torch convolves, (D, H, W, C).

Channels are activated and shifted on the way in and summed on the way out, so each volume is passed over once. Torch's
are float32 or bfloat16, and the loops round to these: no other pass converts.
"""

from __future__ import annotations

import numpy as np

from e2enet.network.compiled import compiled
from e2enet.network.engine.vector_code import LANES
from e2enet.network.engine.vectors import add_to, load, multiply_add, plus, spread, store, transpose

BLOCK_VALUES = 2**13  # taken at a time: they stay in the level-1 cache
WIDE = np.float32(0)


@compiled
def whole_vectors(count):
    """Return `count`, rounded up to whole vectors."""
    return (count + LANES - 1) // LANES * LANES


@compiled
def lay_out(columns, top, values, places, affine, shifts, start, out, first, last):
    """Write the pieces first .. last - 1 of a source's channels. A piece is `columns` pixels of a row.

    values: (K, H, W, D). places: (C,) int64, each channel's index in `values`, -1 for a channel that is zero
    everywhere. affine: (C, 3), scale, offset and negative slope of its activation. shifts: (C,) slices along the depth.
    out: (D, rows, W, all channels) float32, or uint16 for bfloat16, written from channel `start` on. Its first row is
    row `top` of the plane; rows outside the plane are zero.
    """
    _, height, width, depth = values.shape
    pieces, channels = (width + columns - 1) // columns, len(places)
    (_, rows, _, total), kind, size = out.shape, out[0, 0, 0, 0], out.itemsize
    lines, tile = np.zeros((LANES, columns, whole_vectors(depth)), np.float32), np.empty((LANES, LANES), np.float32)
    turned = tile.ctypes.data
    for piece in range(first, last):
        row, left = piece // pieces, piece % pieces * columns
        count, y = min(columns, width - left), top + row
        if y < 0 or y >= height:
            out[:, row, left : left + count, start : start + channels] = 0
            continue
        for c in range(0, channels, LANES):
            lanes = min(LANES, channels - c)
            for lane in range(lanes):
                place, (scale, offset, slope) = places[c + lane], affine[c + lane]
                shift = min(max(shifts[c + lane], -depth), depth)
                begin, end = max(shift, 0), depth + min(shift, 0)
                for x in range(count):
                    line = lines[lane, x]
                    line[:begin] = 0
                    line[end:depth] = 0
                    inside = line[begin:end]
                    if place < 0:
                        inside[:] = offset if offset > 0 else offset * slope
                        continue
                    source = values[place, y, left + x, begin - shift :]
                    for z in range(len(inside)):
                        value = source[z] * scale + offset
                        inside[z] = value if value > 0 else value * slope
            for x in range(count):
                for z in range(0, depth, LANES):
                    transpose(lines[:, x, z:].ctypes.data, lines.strides[0], turned, tile.strides[0])
                    for plane in range(z, min(z + LANES, depth)):
                        written = out.ctypes.data + size * (
                            ((plane * rows + row) * width + left + x) * total + start + c
                        )
                        store(kind, written, lanes, load(WIDE, turned + tile.strides[0] * (plane - z), LANES))


@compiled
def take_over(convolved, top, values, totals, first, last):
    """Copy the rows first .. last - 1 of a convolution's output to `values` (O, H, W, D) from row `top` on.

    convolved: (D, rows, W, O) float32, or uint16 for bfloat16. totals: (H, O, 2) float64, sums and squares of each row.
    """
    depth, rows, width, outputs = convolved.shape
    kind, size, columns = convolved[0, 0, 0, 0], convolved.itemsize, max(1, BLOCK_VALUES // (LANES * depth))
    lines, tile = np.empty((LANES, columns, whole_vectors(depth)), np.float32), np.zeros((LANES, LANES), np.float32)
    turned, sums = tile.ctypes.data, np.empty((2, LANES), np.float64)
    for row in range(first, last):
        for c in range(0, outputs, LANES):
            lanes = min(LANES, outputs - c)
            for left in range(0, width, columns):
                count = min(columns, width - left)
                sums[:] = 0
                for x in range(count):
                    plain, square = spread(np.float32(0)), spread(np.float32(0))
                    for z in range(0, depth, LANES):
                        for plane in range(z, min(z + LANES, depth)):
                            given = size * (((plane * rows + row) * width + left + x) * outputs + c)
                            value = load(kind, convolved.ctypes.data + given, lanes)
                            plain, square = plus(plain, value), multiply_add(value, value, square)
                            store(WIDE, turned + tile.strides[0] * (plane - z), LANES, value)
                        transpose(turned, tile.strides[0], lines[:, x, z:].ctypes.data, lines.strides[0])
                    add_to(sums[0].ctypes.data, plain)
                    add_to(sums[1].ctypes.data, square)
                for lane in range(lanes):
                    values[c + lane, top + row, left : left + count] = lines[lane, :count, :depth]
                    totals[top + row, c + lane] += sums[:, lane]
