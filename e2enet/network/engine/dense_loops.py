"""Compiled loops between the engine's volumes (C, H, W, D) and those that torch convolves, (D, H, W, C).

Channels are activated and shifted on the way in and summed on the way out, so each volume is passed over once.
"""

from __future__ import annotations

import numpy as np

from e2enet.network.compiled import compiled

BLOCK_VALUES = 2**14  # transposed at a time: 64 KiB, which fit the level-2 cache


@compiled
def lay_out(columns, top, values, places, affine, shifts, start, out, first, last):
    """Write the pieces first .. last - 1 of a source's channels. A piece is `columns` pixels of a row.

    values: (K, H, W, D). places: (C,) int64, each channel's index in `values`, -1 for a channel that is zero
    everywhere. affine: (C, 3), scale, offset and negative slope of its activation. shifts: (C,) slices along the depth.
    out: (D, rows, W, all channels), written from channel `start` on. Its first row is row `top` of the plane; rows
    outside the plane are zero.
    """
    _, height, width, depth = values.shape
    pieces = (width + columns - 1) // columns
    channels = len(places)
    block = np.empty((channels, columns, depth), np.float32)
    for piece in range(first, last):
        row, left = piece // pieces, piece % pieces * columns
        count = min(columns, width - left)
        y = top + row
        if y < 0 or y >= height:
            out[:, row, left : left + count, start : start + channels] = 0
            continue
        for channel in range(channels):
            scale, offset, slope = affine[channel]
            shift = min(max(shifts[channel], -depth), depth)
            begin, end = max(shift, 0), depth + min(shift, 0)
            for x in range(count):
                line = block[channel, x]
                line[:begin] = 0
                line[end:] = 0
                if places[channel] < 0:
                    line[begin:end] = offset if offset > 0 else offset * slope
                    continue
                source = values[places[channel], y, left + x]
                for z in range(end - begin):
                    value = source[begin - shift + z] * scale + offset
                    line[begin + z] = value if value > 0 else value * slope
        for z in range(depth):
            for x in range(count):
                pixel = out[z, row, left + x]
                for channel in range(channels):
                    pixel[start + channel] = block[channel, x, z]


@compiled
def take_over(convolved, top, values, totals, first, last):
    """Copy the rows first .. last - 1 of a convolution's output, (D, rows, W, O), to `values` (O, H, W, D) from row
    `top` on. totals: (H, O, 2) float64, sums and squares of each row."""
    depth, _, width, outputs = convolved.shape
    for row in range(first, last):
        for x in range(width):
            for output in range(outputs):
                line = values[output, top + row, x]
                total, square = np.float32(0), np.float32(0)
                for z in range(depth):
                    value = convolved[z, row, x, output]
                    line[z] = value
                    total += value
                    square += value * value
                totals[top + row, output, 0] += total
                totals[top + row, output, 1] += square
