"""Triton kernels of the forward pass; `launch` starts them, `reference` says what each computes.

Volumes are channels-last: a voxel's channels lie together. Places within a sample are 32 bit numbers, which `launch`
checks. A program of a kernel takes BLOCK_V voxels of one sample by
BLOCK_C channels. Where channel groups begin at multiples of VECTOR, a thread reads and writes as many at once; the
hints (`max_constancy`) say so to the compiler, which cannot see it in a division.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def wide(x):
    """Return values in the dtype that sums are taken in: float32, or float64 for such values."""
    if x.dtype == tl.float64:
        return x
    else:
        return x.to(tl.float32)


@triton.jit
def seen(x, affine, sample, c, inside_c, channels, slope):
    """Return values (voxels, channels) as readers see them: normalised and activated."""
    row = affine + sample * 4 * channels + c
    scale = tl.load(row, mask=inside_c, other=0.0)
    offset = tl.load(row + channels, mask=inside_c, other=0.0)
    x = x * scale[None, :] + offset[None, :]
    return tl.where(x > 0, x, x * slope)


@triton.jit
def place_in_blocks(d, h, w, height, width, channels, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr):
    """Return where voxels (d 2D; h, w 1D) begin in a sample's products (D / sd, H / sh, W / sw, sd, sh, sw, C)."""
    plane = (height // SH) * (width // SW) * (SD * SH * SW)
    rows = ((h // SH) * (width // SW) + w // SW) * (SD * SH * SW) + (h % SH) * SW + w % SW
    along = (d // SD) * plane + (d % SD) * (SH * SW)
    return (along + rows[:, None]) * channels


@triton.jit
def prepare_part(
    values, affine, slope, out, sample, block_v, c, inside_c, target, shift, channels, total, depth, height, width,
    depth_out, HAS_AFFINE: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    DEPTH_STRIDE: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write one source's channels `c`, moved by `shift`, to the channels `target` of a convolution's input."""
    v = block_v * BLOCK_V + tl.arange(0, BLOCK_V)
    inside_v = v < depth_out * height * width
    w, h = v % width, v // width % height
    d = v // (width * height) * DEPTH_STRIDE
    read = d[:, None] - shift[None, :]
    inside = inside_v[:, None] & inside_c[None, :]
    valid = inside & (read >= 0) & (read < depth)
    if SD * SH * SW == 1:
        voxel = (d * height + h) * width + w
        place = (voxel * channels)[:, None] + (c - shift * (height * width * channels))[None, :]
    else:
        place = place_in_blocks(read, h, w, height, width, channels, SD, SH, SW) + c[None, :]
    own = values + sample * depth * height * width * channels
    x = wide(tl.load(own + place, mask=valid, other=0.0))
    if HAS_AFFINE:
        x = tl.where(valid, seen(x, affine, sample, c, inside_c, channels, slope), 0.0)
    first = out + sample * depth_out * height * width * total
    tl.store(first + (v * total)[:, None] + target[None, :], x.to(out.dtype.element_ty), mask=inside)


@triton.jit
def prepare_block(
    values, affine, slope, out, sample, block_v, block_c, channels, start, total, depth, height, width, depth_out,
    group, margin, HAS_AFFINE: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    DEPTH_STRIDE: tl.constexpr, VECTOR: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write a block of one source's channels, which begin at `start` of the concatenated ones."""
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    shift = tl.max_constancy((start + c) // group - margin, VECTOR)
    prepare_part(
        values, affine, slope, out, sample, block_v, c, c < channels, start + c, shift, channels, total,
        depth, height, width, depth_out, HAS_AFFINE, SD, SH, SW, DEPTH_STRIDE, BLOCK_V,
    )  # fmt: skip


@triton.jit
def prepare_columns_of(
    values, affine, slope, out, sample, block_v, k, target, inside_c, channels, start, total, depth, height, width,
    depth_out, group, margin, HAS_AFFINE: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    DEPTH_STRIDE: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write those of the chosen channels `k` that are one source's."""
    own = inside_c & (k >= start) & (k < start + channels)
    prepare_part(
        values, affine, slope, out, sample, block_v, k - start, own, target, k // group - margin, channels, total,
        depth, height, width, depth_out, HAS_AFFINE, SD, SH, SW, DEPTH_STRIDE, BLOCK_V,
    )  # fmt: skip


@triton.jit
def prepare_columns(
    values_0, affine_0, slope_0, channels_0, blocks_0, values_1, affine_1, slope_1, channels_1, blocks_1,
    values_2, affine_2, slope_2, channels_2, out, total, depth, height, width, depth_out, group, margin, columns,
    AFFINE_0: tl.constexpr, AFFINE_1: tl.constexpr, AFFINE_2: tl.constexpr,
    SD_0: tl.constexpr, SH_0: tl.constexpr, SW_0: tl.constexpr,
    SD_1: tl.constexpr, SH_1: tl.constexpr, SW_1: tl.constexpr,
    SD_2: tl.constexpr, SH_2: tl.constexpr, SW_2: tl.constexpr,
    SOURCES: tl.constexpr, DEPTH_STRIDE: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the chosen channels of a convolution's input: a program writes a block of them, of any source."""
    block_v, block_c, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    target = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_c = target < total
    k = tl.load(columns + target, mask=inside_c, other=0).to(tl.int32)
    prepare_columns_of(
        values_0, affine_0, slope_0, out, sample, block_v, k, target, inside_c, channels_0, 0, total,
        depth, height, width, depth_out, group, margin, AFFINE_0, SD_0, SH_0, SW_0, DEPTH_STRIDE, BLOCK_V,
    )  # fmt: skip
    if SOURCES > 1:
        prepare_columns_of(
            values_1, affine_1, slope_1, out, sample, block_v, k, target, inside_c, channels_1, channels_0, total,
            depth, height, width, depth_out, group, margin, AFFINE_1, SD_1, SH_1, SW_1, DEPTH_STRIDE, BLOCK_V,
        )  # fmt: skip
    if SOURCES > 2:
        prepare_columns_of(
            values_2, affine_2, slope_2, out, sample, block_v, k, target, inside_c, channels_2,
            channels_0 + channels_1, total, depth, height, width, depth_out, group, margin,
            AFFINE_2, SD_2, SH_2, SW_2, DEPTH_STRIDE, BLOCK_V,
        )  # fmt: skip


@triton.jit
def prepare(
    values_0, affine_0, slope_0, channels_0, blocks_0, values_1, affine_1, slope_1, channels_1, blocks_1,
    values_2, affine_2, slope_2, channels_2, out, total, depth, height, width, depth_out, group, margin,
    AFFINE_0: tl.constexpr, AFFINE_1: tl.constexpr, AFFINE_2: tl.constexpr,
    SD_0: tl.constexpr, SH_0: tl.constexpr, SW_0: tl.constexpr,
    SD_1: tl.constexpr, SH_1: tl.constexpr, SW_1: tl.constexpr,
    SD_2: tl.constexpr, SH_2: tl.constexpr, SW_2: tl.constexpr,
    SOURCES: tl.constexpr, DEPTH_STRIDE: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write a convolution's input from up to three sources: a program writes a block of one of them."""
    block_v, block_c, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    if SOURCES == 1 or block_c < blocks_0:
        prepare_block(
            values_0, affine_0, slope_0, out, sample, block_v, block_c, channels_0, 0, total,
            depth, height, width, depth_out, group, margin, AFFINE_0, SD_0, SH_0, SW_0,
            DEPTH_STRIDE, VECTOR, BLOCK_V, BLOCK_C,
        )  # fmt: skip
    else:
        if SOURCES == 2 or block_c < blocks_0 + blocks_1:
            prepare_block(
                values_1, affine_1, slope_1, out, sample, block_v, block_c - blocks_0, channels_1, channels_0, total,
                depth, height, width, depth_out, group, margin, AFFINE_1, SD_1, SH_1, SW_1,
                DEPTH_STRIDE, VECTOR, BLOCK_V, BLOCK_C,
            )  # fmt: skip
        else:
            prepare_block(
                values_2, affine_2, slope_2, out, sample, block_v, block_c - blocks_0 - blocks_1, channels_2,
                channels_0 + channels_1, total, depth, height, width, depth_out, group, margin,
                AFFINE_2, SD_2, SH_2, SW_2, DEPTH_STRIDE, VECTOR, BLOCK_V, BLOCK_C,
            )  # fmt: skip


@triton.jit
def pool(
    values, affine, slope, pooled, largest, channels, depth, height, width,
    HAS_AFFINE: tl.constexpr, PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the maxima of windows and the number of each window's largest voxel: the first of equals, and NaN."""
    block_v, block_c, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    v = block_v * BLOCK_V + tl.arange(0, BLOCK_V)
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    coarse_w, coarse_h = width // PW, height // PH
    count = (depth // PD) * coarse_h * coarse_w
    inside_c = c < channels
    inside = (v < count)[:, None] & inside_c[None, :]
    w, h, d = v % coarse_w * PW, v // coarse_w % coarse_h * PH, v // (coarse_w * coarse_h) * PD
    place = (d * height + h) * width + w
    own = values + sample * depth * height * width * channels
    best = tl.full((BLOCK_V, BLOCK_C), float("-inf"), dtype=tl.float32)
    if values.dtype.element_ty == tl.float64:
        best = best.to(tl.float64)
    number = tl.zeros((BLOCK_V, BLOCK_C), dtype=tl.int32)
    for a in tl.static_range(PD):
        for b in tl.static_range(PH):
            for e in tl.static_range(PW):
                voxel = place + (a * height + b) * width + e
                x = wide(tl.load(own + (voxel * channels)[:, None] + c[None, :], mask=inside, other=0.0))
                if HAS_AFFINE:
                    x = seen(x, affine, sample, c, inside_c, channels, slope)
                take = (x > best) | ((x != x) & (best == best))
                if (a * PH + b) * PW + e == 0:
                    take = inside  # a window of -inf has its first voxel
                best = tl.where(take, x, best)
                number = tl.where(take, (a * PH + b) * PW + e, number)
    first, target = sample * count * channels, (v * channels)[:, None] + c[None, :]
    tl.store(pooled + first + target, best.to(pooled.dtype.element_ty), mask=inside)
    tl.store(largest + first + target, number.to(tl.uint8), mask=inside)


@triton.jit
def active_weights(table, out, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Write every weight (dim 0, dim 1, taps) as (dim 0, taps, dim 1), zero where its mask is False.

    A row of the table (int64): addresses of weight and mask (0: none), first element in `out`, dim 0, dim 1, taps.
    """
    row = table + tl.program_id(0) * 6
    weight = tl.load(row).to(tl.pointer_type(DTYPE))
    masked = tl.load(row + 1)
    mask = masked.to(tl.pointer_type(tl.int8))
    target = out + tl.load(row + 2)
    dim1, taps = tl.load(row + 4), tl.load(row + 5)
    count = tl.load(row + 3) * dim1 * taps
    for first in range(tl.program_id(1) * BLOCK, count, tl.num_programs(1) * BLOCK):
        index = first + tl.arange(0, BLOCK)
        inside = index < count
        j, t, i = index % dim1, index // dim1 % taps, index // (dim1 * taps)
        kernel = i * dim1 + j
        x = tl.load(weight + kernel * taps + t, mask=inside, other=0.0)
        active = tl.load(mask + kernel, mask=inside & (masked != 0), other=1) != 0
        tl.store(target + index, tl.where(active, x, 0.0).to(out.dtype.element_ty), mask=inside)
