"""Triton kernels of convolutions that prepare what they read: implicit products of matrices (`tl.dot`).

A program takes a box of voxels of one sample, which are the rows of a matrix, by a block of output channels. It adds
up, over sources, channels and taps, the product of what the taps of these voxels read and the weights. A voxel is read
as it was written; norm, activation and depth-shift are applied on the way. Channels that move together are a run, so
that a shift is one number in the inner loop, and everything that depends on the voxel is a vector, not a matrix.
"""

from __future__ import annotations

import triton
import triton.language as tl

from e2enet.network.fused.kernels_forward import seen, wide


@triton.jit
def voxels_of(tile, height, width, TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr):
    """Return depth, row and column of the voxels of a tile, a box of TD x TH x TW."""
    r = tl.arange(0, TD * TH * TW)
    across, down = tl.cdiv(width, TW), tl.cdiv(height, TH)
    w = tile % across * TW + r % TW
    h = tile // across % down * TH + r // TW % TH
    d = tile // (across * down) * TD + r // (TW * TH)
    return d, h, w


@triton.jit
def place_of(d, h, w, height, width, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr):
    """Return the number of a voxel in a sample, or in an expansion's products (D / sd, H / sh, W / sw, sd, sh, sw)."""
    if SD * SH * SW == 1:
        return (d * height + h) * width + w
    else:
        block = ((d // SD) * (height // SH) + h // SH) * (width // SW) + w // SW
        return block * (SD * SH * SW) + ((d % SD) * SH + h % SH) * SW + w % SW


@triton.jit
def add_source(
    total, values, affine, slope, channels, start, weight, sample, d, h, w, inside, n, inside_n,
    depth, height, width, group, margin, step_k, step_tap, step_n,
    HAS_AFFINE: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE_D: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, PRECISION: tl.constexpr, VECTOR: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Return `total` plus the products of one source, whose channels begin at `start` of the concatenated ones."""
    own = values + sample * depth * height * width * channels
    for run in range(start // group, (start + channels - 1) // group + 1):
        first = tl.multiple_of(tl.maximum(run * group - start, 0), VECTOR)
        stop = tl.multiple_of(tl.minimum((run + 1) * group - start, channels), VECTOR)
        z = d * STRIDE_D - (run - margin)
        inside_z = inside & (z >= 0) & (z < depth)
        for step in range(tl.cdiv(stop - first, BLOCK_K) * (KH * KW)):
            tap = step % (KH * KW)
            k = first + step // (KH * KW) * BLOCK_K + tl.arange(0, BLOCK_K)
            inside_k = k < stop
            y, x = h * STRIDE_H + (tap // KW - PAD_H), w * STRIDE_W + (tap % KW - PAD_W)
            valid = (inside_z & (y >= 0) & (y < height) & (x >= 0) & (x < width))[:, None]
            place = (place_of(z, y, x, height, width, SD, SH, SW) * channels)[:, None] + k[None, :]
            a = tl.load(own + place, mask=valid & inside_k[None, :], other=0.0)
            if HAS_AFFINE:
                a = tl.where(valid, seen(wide(a), affine, sample, k, inside_k, channels, slope), 0.0)
            at = weight + tap * step_tap + ((start + k) * step_k)[:, None] + (n * step_n)[None, :]
            b = tl.load(at, mask=inside_k[:, None] & inside_n[None, :], other=0.0)
            total = tl.dot(a.to(b.dtype), b, total, input_precision=PRECISION)
    return total


@triton.jit
def convolve(
    values_0, affine_0, slope_0, channels_0, values_1, affine_1, slope_1, channels_1,
    values_2, affine_2, slope_2, channels_2, weight, out, partial, counts, outputs, tiles,
    depth, height, width, depth_out, height_out, width_out, group, margin, step_k, step_tap, step_n,
    AFFINE_0: tl.constexpr, AFFINE_1: tl.constexpr, AFFINE_2: tl.constexpr,
    SD_0: tl.constexpr, SH_0: tl.constexpr, SW_0: tl.constexpr,
    SD_1: tl.constexpr, SH_1: tl.constexpr, SW_1: tl.constexpr,
    SD_2: tl.constexpr, SH_2: tl.constexpr, SW_2: tl.constexpr, SOURCES: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE_D: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, PRECISION: tl.constexpr, VECTOR: tl.constexpr, MOMENTS: tl.constexpr,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write a tile of a convolution by a block of its output channels, and the moments of the tile.

    partial: (B, tiles, 2, outputs), mean and sum of squared differences from it. counts: (tiles,), voxels of each.
    weight: its element (input, tap, output) lies at the sum of the three steps.
    """
    blocks_n = tl.cdiv(outputs, BLOCK_N)
    tile, sample = tl.program_id(0) // blocks_n, tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) % blocks_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside_n = n < outputs
    d, h, w = voxels_of(tile, height_out, width_out, TD, TH, TW)
    inside = (d < depth_out) & (h < height_out) & (w < width_out)
    total = tl.zeros((TD * TH * TW, BLOCK_N), dtype=tl.float32)
    total = add_source(
        total, values_0, affine_0, slope_0, channels_0, 0, weight, sample, d, h, w, inside, n, inside_n,
        depth, height, width, group, margin, step_k, step_tap, step_n, AFFINE_0, SD_0, SH_0, SW_0,
        KH, KW, STRIDE_D, STRIDE_H, STRIDE_W, PAD_H, PAD_W, PRECISION, VECTOR, BLOCK_K,
    )  # fmt: skip
    if SOURCES > 1:
        total = add_source(
            total, values_1, affine_1, slope_1, channels_1, channels_0, weight, sample, d, h, w, inside, n, inside_n,
            depth, height, width, group, margin, step_k, step_tap, step_n, AFFINE_1, SD_1, SH_1, SW_1,
            KH, KW, STRIDE_D, STRIDE_H, STRIDE_W, PAD_H, PAD_W, PRECISION, VECTOR, BLOCK_K,
        )  # fmt: skip
    if SOURCES > 2:
        total = add_source(
            total, values_2, affine_2, slope_2, channels_2, channels_0 + channels_1, weight, sample,
            d, h, w, inside, n, inside_n, depth, height, width, group, margin, step_k, step_tap, step_n,
            AFFINE_2, SD_2, SH_2, SW_2, KH, KW, STRIDE_D, STRIDE_H, STRIDE_W, PAD_H, PAD_W, PRECISION, VECTOR, BLOCK_K,
        )  # fmt: skip
    written = total.to(out.dtype.element_ty)
    place = ((d * height_out + h) * width_out + w) * outputs
    own = out + sample * depth_out * height_out * width_out * outputs
    tl.store(own + place[:, None] + n[None, :], written, mask=inside[:, None] & inside_n[None, :])
    if MOMENTS:
        count = tl.sum(inside.to(tl.float32), 0)
        mean = tl.sum(wide(written), 0) / count  # what lies outside of the volume is 0
        away = tl.where(inside[:, None], wide(written) - mean[None, :], 0.0)
        target = partial + ((sample * tiles + tile) * 2) * outputs + n
        tl.store(target, mean, mask=inside_n)
        tl.store(target + outputs, tl.sum(away * away, 0), mask=inside_n)
        tl.store(counts + tile, count)  # the same number from every sample and block


@triton.jit
def correlate(
    values, affine, slope, grad, partial, channels, start, total, outputs, samples, tiles, chunk_tiles,
    depth, height, width, depth_out, height_out, width_out, group, margin,
    HAS_AFFINE: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    KH: tl.constexpr, KW: tl.constexpr, STRIDE_D: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr, PAD_W: tl.constexpr, PRECISION: tl.constexpr, VECTOR: tl.constexpr,
    TD: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write a chunk's part of the gradient of a weight: a block of output channels by one of a source's channels.

    A voxel is read and prepared once. The gradient of the output is read where each tap of the kernel puts the voxel.
    partial: (chunks, outputs, taps, total). A chunk has `chunk_tiles` tiles of voxels, of one sample after the other.
    """
    chunk = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_n, inside_c = n < outputs, c < channels
    shift = tl.max_constancy((start + c) // group - margin, VECTOR)
    sums = (tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32),) * (KH * KW)
    for tile in range(chunk * chunk_tiles, tl.minimum((chunk + 1) * chunk_tiles, samples * tiles)):
        sample = tile // tiles
        d, h, w = voxels_of((tile % tiles).to(tl.int32), height, width, TD, TH, TW)
        inside = (d < depth_out) & (h < height) & (w < width)
        z = (d * STRIDE_D)[:, None] - shift[None, :]
        valid = inside[:, None] & inside_c[None, :] & (z >= 0) & (z < depth)
        place = place_of(z, h[:, None], w[:, None], height, width, SD, SH, SW) * channels + c[None, :]
        x = tl.load(values + sample * depth * height * width * channels + place, mask=valid, other=0.0)
        if HAS_AFFINE:
            x = tl.where(valid, seen(wide(x), affine, sample, c, inside_c, channels, slope), 0.0)
        x = x.to(grad.dtype.element_ty)
        own = grad + sample * depth_out * height_out * width_out * outputs
        found = ()  # triton knows no lists, and no stars in tuples
        for tap in tl.static_range(KH * KW):
            y, u = h + PAD_H - tap // KW, w + PAD_W - tap % KW
            row, column = y // STRIDE_H, u // STRIDE_W
            read = inside & (y >= 0) & (row < height_out) & (u >= 0) & (column < width_out)
            if STRIDE_H * STRIDE_W > 1:
                read = read & (y % STRIDE_H == 0) & (u % STRIDE_W == 0)
            at = ((d * height_out + row) * width_out + column) * outputs
            g = tl.load(own + at[:, None] + n[None, :], mask=read[:, None] & inside_n[None, :], other=0.0)
            own_sum = tl.dot(tl.trans(g), x, sums[tap], input_precision=PRECISION)
            found = found + (own_sum,)  # type: ignore[assignment]  # noqa: RUF005
        sums = found
    for tap in tl.static_range(KH * KW):
        target = partial + ((chunk * outputs + n) * (KH * KW) + tap)[:, None] * total + (start + c)[None, :]
        tl.store(target, sums[tap], mask=inside_n[:, None] & inside_c[None, :])
