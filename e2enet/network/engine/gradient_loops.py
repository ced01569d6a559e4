"""Compiled loops of the engine's backward pass, tile by tile or channel by channel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from e2enet.network.compiled import compiled
from e2enet.network.engine.inner_loops import COLUMNS
from e2enet.network.engine.loops import call, entries_of, fill_tile
from e2enet.network.engine.vector_code import LANES, VECTOR_BYTES

BLOCK = 2**9  # vectors that are summed in float32


class GradientCodes(NamedTuple):
    """Addresses of functions that `correlate` calls."""

    fill: int
    fill_gradient: int
    multiply: int


class NormCodes(NamedTuple):
    """Addresses of functions that `norm` calls."""

    sums: int
    gradient: int


@compiled
def correlate(sample, first, last, codes, tile, gradient_tile, tiles, tile_source, gradients, kernels):
    """Add the weight gradients of a sample's tiles first .. last - 1 to `kernels.weights`.

    tile, gradient_tile: memory for a tile of the sources and one of the output's gradients. gradients: how the latter
    is filled.
    """
    height = gradients.size[1]
    row_bytes, step = tile.shape[2] * VECTOR_BYTES, gradient_tile.shape[2] * VECTOR_BYTES
    for number in range(first, last):
        fill_tile(tile, number, sample, codes.fill, tiles, tile_source)
        fill_tile(gradient_tile, number, sample, codes.fill_gradient, tiles, gradients)
        _, row, column = tiles.places[number]
        rows = min(tiles.size[0], height - row)
        blocks = (min(tiles.size[1], tiles.strip_width - column) + COLUMNS - 1) // COLUMNS
        for output in range(len(gradient_tile)):
            offsets, products, count = entries_of(kernels, output)
            gradient = gradient_tile.ctypes.data + output * tiles.size[0] * step
            area = gradient, step, rows, blocks, products
            call(codes.multiply, (tile.ctypes.data, offsets, count, row_bytes, *area))


@compiled
def norm(first, last, codes, values, gradients, voxels, affine, moments, results):
    """Turn the gradients of activated channels first .. last - 1 into those of their norm's input, in place.

    values, gradients: addresses of channels of `voxels` voxels. affine: (C, 3), see `LazyVolumes`. moments: (C, 2)
    float64, mean and 1 / standard deviation. results: (C, 2) float64, gradients of the norm's weight and bias.
    """
    whole, rest = voxels // LANES, (1 << voxels % LANES) - 1
    totals = np.empty((2, LANES), np.float32)
    constants = np.zeros(6, np.float32)
    for channel in range(first, last):
        mean, rstd = moments[channel]
        constants[:3] = affine[channel]
        constants[3] = mean
        added, weighted = 0.0, 0.0
        for start in range(0, whole + 1, BLOCK):
            place = start * VECTOR_BYTES
            bits = rest if start + BLOCK > whole else 0
            part = values[channel] + place, gradients[channel] + place, min(BLOCK, whole - start), bits
            call(codes.sums, (*part, constants.ctypes.data, totals.ctypes.data))
            for lane in range(LANES):
                added += totals[0, lane]
                weighted += totals[1, lane]
        results[channel, 0] = weighted * rstd
        results[channel, 1] = added
        scale = np.float64(constants[0])
        constants[4] = -scale * rstd * rstd * weighted / voxels
        constants[5] = -scale * added / voxels
        everything = values[channel], gradients[channel], whole, rest
        call(codes.gradient, (*everything, constants.ctypes.data))


@compiled
def unpool(first, last, values, places, affine, stride, coarse, written, targets):
    """targets (+)= the gradients of a max pooling: `coarse` at a window's largest value, else 0.

    Rows first .. last - 1 of `targets` (rows, H, W, D) and `coarse` (rows, H / sh, W / sw, D / sd) are gone through.
    values, places, affine: of the pooled values, as in `loops.pool`. written: bool (C,), the channels to add to.
    Ties go to the first voxel in the order of depth, height, width.
    """
    sd, sh, sw = stride
    _, height, width, depth = coarse.shape
    fine = targets.shape[3]
    best, where, given = np.empty(fine, np.float32), np.empty(fine, np.int32), np.empty(fine, np.float32)
    for row in range(first, last):
        sample, channel = row // len(places), row % len(places)
        zero = places[channel] < 0
        source = targets[row] if zero else values[sample, places[channel]]
        # Where the activation falls, the smallest value becomes the largest.
        sign = np.float32(1) if affine[sample, channel, 0] >= 0 else np.float32(-1)
        target = targets[row]
        for y in range(height):
            for x in range(width):
                best[:] = -np.inf
                where[:] = 0
                for place in range(sh * sw):  # first the largest of every slice
                    pixel = source[y * sh + place // sw, x * sw + place % sw]
                    for z in range(fine):
                        value = np.float32(0) if zero else sign * pixel[z]
                        larger = value > best[z]
                        best[z] = value if larger else best[z]
                        where[z] = place if larger else where[z]
                for z in range(depth):
                    largest = z * sd
                    for slice_in in range(z * sd, (z + 1) * sd):
                        given[slice_in] = 0
                        if best[slice_in] > best[largest]:
                            largest = slice_in
                    given[largest] = coarse[row, y, x, z]
                for place in range(sh * sw):
                    pixel = target[y * sh + place // sw, x * sw + place % sw]
                    if written[channel]:
                        for z in range(fine):
                            pixel[z] += given[z] if where[z] == place else np.float32(0)
                    else:
                        for z in range(fine):
                            pixel[z] = given[z] if where[z] == place else np.float32(0)
