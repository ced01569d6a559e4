"""The operations around convolutions as loops for CPUs, compiled by numba: one pass over memory each.

Volumes lie channels-last, in float32 or bfloat16. A loop takes lines, the voxels of one row along the width, and LANES
channels at a time (`vectors`). Most take these of a whole line before the next ones, so that what belongs to channels
stays in registers. They are given addresses. Tables of numbers by channel have LANES more channels at their end, so
that they are read whole.

kind: a value of the volumes' type, see `vectors`. size: its bytes. sample: index in the batch; its lines are taken.
"""

from __future__ import annotations

import numpy as np

from e2enet.network.compiled import compiled
from e2enet.network.engine.vector_code import LANES
from e2enet.network.engine.vectors import (
    add_to,
    load,
    minus,
    multiply_add,
    plus,
    spread,
    store,
    times,
    where_beaten,
    where_equal,
    where_positive,
)

BLOCK_VALUES = 2**14  # that a sum passes over before the next channels: they stay in the cache
BLOCK_ROWS = 512  # summed in float32 at most
WIDE, BYTE = np.float32(0), np.uint8(0)  # kinds of tables, and of the numbers of largest voxels


@compiled
def prepare(kind, size, slabs, slopes, affine, kind_out, size_out, out, shape, sample, first, last):
    """Write lines first .. last - 1 of a sample's input of a convolution, (B, D / depth_stride, H, W, total).

    slabs: (slabs, 9) int64, channels of one source with one shift: the source's address and channels, the first channel
    there and in the input, how many, their shift, and the steps of the blocks in which the source lies. slopes:
    (slabs,) float32. affine: (B, 2, total + LANES) float32, scale and offset. shape: depth, height, width,
    depth_stride, total.
    """
    depth, height, width, depth_stride, total = shape
    row, voxel, zeros = 4 * (total + LANES), total * size_out, spread(np.float32(0))
    lines = (depth + depth_stride - 1) // depth_stride * height
    for line in range(first, last):
        h, plane = line % height, line // height
        for slab in range(len(slabs)):
            source, channels, start, target, count, shift, sd, sh, sw = slabs[slab]
            d, taps, down = plane * depth_stride - shift, sd * sh * sw, spread(slopes[slab])
            there = out + (sample * lines + line) * width * voxel + target * size_out
            if d < 0 or d >= depth:
                for w in range(width):
                    for c in range(0, count, LANES):
                        store(kind_out, there + w * voxel + c * size_out, count - c, zeros)
                continue
            coarse_line = (sample * (depth // sd) + d // sd) * (height // sh) + h // sh
            tap = (d % sd * sh + h % sh) * sw
            here = source + ((coarse_line * (width // sw) * taps + tap) * channels + start) * size
            own = affine + 2 * sample * row + 4 * target
            for c in range(0, count, LANES):
                scale, offset = load(WIDE, own + 4 * c, LANES), load(WIDE, own + row + 4 * c, LANES)
                for coarse in range(width // sw):
                    for k in range(sw):
                        value = load(kind, here + ((coarse * taps + k) * channels + c) * size, count - c)
                        value = multiply_add(value, scale, offset)
                        value = where_positive(value, value, times(value, down))
                        store(kind_out, there + (coarse * sw + k) * voxel + c * size_out, count - c, value)


@compiled
def add_moments(kind, size, values, channels, centre, sums, first, last):
    """Add to `sums`, float64 (2, C + LANES), the sums of the rows first .. last - 1 less `centre` and of the squares.

    values: rows (voxels, C). centre: (C + LANES,) float32.
    """
    rows = min(BLOCK_ROWS, max(LANES, BLOCK_VALUES // channels))
    for block in range(first, last, rows):
        for c in range(0, channels, LANES):
            middle = load(WIDE, centre + 4 * c, LANES)
            plain, square = spread(np.float32(0)), spread(np.float32(0))
            for row in range(block, min(block + rows, last)):
                value = minus(load(kind, values + (row * channels + c) * size, channels - c), middle)
                plain, square = plus(plain, value), multiply_add(value, value, square)
            add_to(sums + 8 * c, plain)
            add_to(sums + 8 * (channels + LANES + c), square)


@compiled
def pool(kind, size, values, affine, slope, pooled, largest, shape, window, sample, first, last):
    """Write the maxima of a sample's windows, lines first .. last - 1 of (B, D / sd, H / sh, W / sw, C).

    Beside each, the number of its voxel in the window. affine: (B, 2, C + LANES) float32. shape: pooled depth, height
    and width, C.
    """
    (depth, height, width, channels), (sd, sh, sw) = shape, window
    row, down, step = 4 * (channels + LANES), spread(slope), channels * size
    for line in range(first, last):
        d, h = line // height, line % height
        corner = values + ((sample * depth + d) * sd * height + h) * sh * width * sw * step
        for c in range(0, channels, LANES):
            own, count = affine + 2 * sample * row + 4 * c, channels - c
            scale, offset = load(WIDE, own, LANES), load(WIDE, own + row, LANES)
            for w in range(width):
                best, number, k = spread(-np.float32(np.inf)), spread(np.float32(0)), np.float32(0)
                for plane in range(sd):
                    for inner in range(sh):
                        voxel = corner + ((plane * height * sh + inner) * width * sw + w * sw) * step + c * size
                        for _ in range(sw):
                            value = multiply_add(load(kind, voxel, count), scale, offset)
                            value = where_positive(value, value, times(value, down))
                            number = where_beaten(best, value, spread(k), number)
                            best = where_beaten(best, value, value, best)
                            voxel += step
                            k += np.float32(1)
                place = ((sample * depth * height + line) * width + w) * channels + c
                store(kind, pooled + place * size, count, best)
                store(BYTE, largest + place, count, number)


@compiled
def gather_gradient(kind, size, values, table, slope, out, sums, readers, runs, shape, sample, first, last):
    """Write lines first .. last - 1 of a sample's gradient before the activation, and add to its sums.

    It takes LANES channels of a whole line before the next ones, so that their sums stay in registers.

    table: (B, 4, C + LANES) float32 of `statistics`. sums: float64 (2, C + LANES). readers: (readers, 8) int64, address
    of a reader's gradient, its channels, the first one of these values, depth stride, address of the numbers of the
    largest voxels (0: none), window. runs: (runs, 2 + readers) int64, first and last channel of a run and its shift for
    each reader. shape: depth, height, width, C, and the width of every window.
    """
    depth, height, width, channels, step = shape
    row, down, zeros = 4 * (channels + LANES), spread(slope), spread(np.float32(0))
    places = np.empty((len(readers), 5), np.int64)
    for line in range(first, last):
        for run in range(len(runs)):
            find_readers(size, readers, runs[run, 2:], shape, sample, line, places)
            for c in range(runs[run, 0], runs[run, 1], LANES):
                own, count = table + 4 * (sample * row + c), runs[run, 1] - c
                scale, offset = load(WIDE, own, LANES), load(WIDE, own + row, LANES)
                mean, rstd = load(WIDE, own + 2 * row, LANES), load(WIDE, own + 3 * row, LANES)
                plain, normal = zeros, zeros
                place = ((sample * depth * height + line) * width * channels + c) * size
                for coarse in range(width // step):
                    for k in range(step):
                        total = zeros
                        for reader in range(len(readers)):
                            given, by_window, by_voxel, numbers, number = places[reader]
                            if given == 0:
                                continue
                            found = load(kind, given + coarse * by_window + k * by_voxel + c * size, count)
                            if numbers != 0:
                                largest = load(BYTE, numbers + coarse * channels + c, count)
                                found = where_equal(largest, spread(np.float32(number + k)), found, zeros)
                            total = plus(total, found)
                        value = load(kind, values + place, count)
                        total = where_positive(multiply_add(value, scale, offset), total, times(total, down))
                        store(kind, out + place, count, total)
                        plain = plus(plain, total)
                        normal = multiply_add(total, times(minus(value, mean), rstd), normal)
                        place += channels * size
                add_to(sums + 8 * c, plain)
                add_to(sums + 8 * (channels + LANES + c), normal)


@compiled
def find_readers(size, readers, shifts, shape, sample, line, places):
    """Fill `places`, (readers, 5), with where the readers' gradients of a line lie: see `gather_gradient`.

    The address of channel 0 of the first voxel, 0 if a reader has no gradient there; bytes from window to window, and
    from voxel to voxel of a window; the address of the numbers of the largest voxels, 0 if there are none; and the
    number of the line's first voxel in its window.
    """
    depth, height, width, channels, step = shape
    for reader in range(len(readers)):
        grad, total, start, depth_stride, largest, sd, sh, sw = readers[reader]
        d, h = line // height, line % height
        edge, moved = depth // sd, d // sd + shifts[reader]
        slices, plane = (edge + depth_stride - 1) // depth_stride, height // sh * (width // sw)
        in_plane = h // sh * (width // sw)
        inside = moved >= 0 and moved < edge and moved % depth_stride == 0
        there = (sample * slices + moved // depth_stride) * plane + in_plane
        here = (sample * edge + d // sd) * plane + in_plane
        places[reader, 0] = grad + (there * total + start) * size if inside else 0
        places[reader, 1] = total * size * (1 if largest != 0 else step)
        places[reader, 2] = 0 if largest != 0 else total * size
        places[reader, 3] = largest + here * channels if largest != 0 else 0
        places[reader, 4] = (d % sd * sh + h % sh) * sw


@compiled
def norm_gradient(kind, size, grad, values, table, out, channels, first, last):
    """Write rows first .. last - 1 of scale * (grad - plain - (value - mean) * factor).

    table: (4, C + LANES) float32: scale, plain, mean, factor.
    """
    step = 4 * (channels + LANES)
    for row in range(first, last):
        for c in range(0, channels, LANES):
            place, count, own = (row * channels + c) * size, channels - c, table + 4 * c
            given = minus(load(kind, grad + place, count), load(WIDE, own + step, LANES))
            normal = minus(load(kind, values + place, count), load(WIDE, own + 2 * step, LANES))
            normal = times(normal, load(WIDE, own + 3 * step, LANES))
            store(kind, out + place, count, times(load(WIDE, own, LANES), minus(given, normal)))


@compiled
def block_gradient(kind, size, readers, runs, out, steps, shape, sample, first, last):
    """Write lines first .. last - 1 of a sample's gradient of an expansion's products, in their order.

    readers: (1, 8), see `gather_gradient`. runs: (runs, 3). steps: of the products' blocks. shape: depth, height and
    width of the whole volume, C, 1.
    """
    (depth, height, width, channels, _), (sd, sh, sw) = shape, steps
    places, zeros = np.empty((1, 5), np.int64), spread(np.float32(0))
    for line in range(first, last):
        d, h = line // height, line % height
        coarse_line = (sample * (depth // sd) + d // sd) * (height // sh) + h // sh
        written = (coarse_line * (width // sw) * sd * sh + d % sd * sh + h % sh) * sw
        for run in range(len(runs)):
            begin, end = runs[run, 0], runs[run, 1]
            find_readers(size, readers, runs[run, 2:], shape, sample, line, places)
            given, _, voxel, _, _ = places[0]
            there = out + written * channels * size
            for _ in range(width // sw):
                for k in range(sw):
                    for c in range(begin, end, LANES):
                        value = load(kind, given + c * size, end - c) if given != 0 else zeros
                        store(kind, there + (k * channels + c) * size, end - c, value)
                    given += voxel if given != 0 else 0
                there += sd * sh * sw * channels * size


@compiled
def active_weights(weight, mask, kind_out, size_out, out, first, last):
    """Write rows first .. last - 1 of a weight (dim 0, dim 1, taps) as (dim 0, taps, dim 1), 0 where the mask is False.

    mask: (dim 0, dim 1) bool; of size 0: every kernel is active.
    """
    _, columns, taps = weight.shape
    turned = np.zeros((taps, columns + LANES), np.float32)
    for row in range(first, last):
        for column in range(columns):
            active = mask.size == 0 or mask[row, column]
            for tap in range(taps):
                turned[tap, column] = weight[row, column, tap] if active else np.float32(0)
        for tap in range(taps):
            given, written = turned[tap].ctypes.data, out + (row * taps + tap) * columns * size_out
            for column in range(0, columns, LANES):
                value = load(WIDE, given + 4 * column, LANES)
                store(kind_out, written + column * size_out, columns - column, value)
