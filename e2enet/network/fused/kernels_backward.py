"""Triton kernels of the backward pass; see `kernels_forward` for how volumes lie and what a program takes."""

from __future__ import annotations

import triton
import triton.language as tl

from e2enet.network.fused.kernels_forward import wide


@triton.jit
def read_back(
    grad, largest, sample, d, h, w, c, inside, channels, total, start, group, margin, depth, height, width,
    DEPTH_STRIDE: tl.constexpr, POOLED: tl.constexpr, PD: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    """Return one reader's gradient of voxels (d, h, w) by channels c, float32 or wider."""
    low_d, low_h, low_w = d // PD, h // PH, w // PW
    edge_d, edge_h, edge_w = depth // PD, height // PH, width // PW
    slices, plane = (edge_d + DEPTH_STRIDE - 1) // DEPTH_STRIDE, edge_h * edge_w
    in_plane = low_h * edge_w + low_w
    shift = tl.max_constancy((start + c) // group - margin, VECTOR)
    moved = low_d[:, None] + shift[None, :]
    valid = inside & (moved >= 0) & (moved < edge_d)
    if POOLED:
        number = largest + sample * edge_d * plane * channels
        place = ((low_d * plane + in_plane) * channels)[:, None] + c[None, :]
        own = ((d % PD) * PH + h % PH) * PW + w % PW
        valid = valid & (tl.load(number + place, mask=inside, other=255).to(tl.int32) == own[:, None])
    if DEPTH_STRIDE == 1:
        place = ((low_d * plane + in_plane) * total)[:, None] + (shift * plane * total + start + c)[None, :]
    else:
        valid = valid & (moved % DEPTH_STRIDE == 0)
        place = (moved // DEPTH_STRIDE) * (plane * total) + (in_plane * total)[:, None] + (start + c)[None, :]
    return wide(tl.load(grad + sample * slices * plane * total + place, mask=valid, other=0.0))


@triton.jit
def gather_gradient(
    values, affine, slope, out, partial, channels, depth, height, width, tiles,
    grad_0, largest_0, total_0, start_0, group_0, margin_0,
    grad_1, largest_1, total_1, start_1, group_1, margin_1,
    grad_2, largest_2, total_2, start_2, group_2, margin_2,
    grad_3, largest_3, total_3, start_3, group_3, margin_3,
    DS_0: tl.constexpr, POOLED_0: tl.constexpr, PD_0: tl.constexpr, PH_0: tl.constexpr, PW_0: tl.constexpr,
    DS_1: tl.constexpr, POOLED_1: tl.constexpr, PD_1: tl.constexpr, PH_1: tl.constexpr, PW_1: tl.constexpr,
    DS_2: tl.constexpr, POOLED_2: tl.constexpr, PD_2: tl.constexpr, PH_2: tl.constexpr, PW_2: tl.constexpr,
    DS_3: tl.constexpr, POOLED_3: tl.constexpr, PD_3: tl.constexpr, PH_3: tl.constexpr, PW_3: tl.constexpr,
    READERS: tl.constexpr, VECTOR: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradient before the activation, and a chunk's sums of it and of it times the normalised value.

    A program takes a chunk of `tiles` blocks. partial: (B, chunks, 2, C).
    """
    chunk, block_c, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_c = c < channels
    row = affine + sample * 4 * channels + c
    scale = tl.load(row, mask=inside_c, other=0.0)[None, :]
    offset = tl.load(row + channels, mask=inside_c, other=0.0)[None, :]
    mean = tl.load(row + 2 * channels, mask=inside_c, other=0.0)[None, :]
    rstd = tl.load(row + 3 * channels, mask=inside_c, other=0.0)[None, :]
    voxels = depth * height * width
    own = sample * voxels * channels
    sum_plain = tl.zeros((BLOCK_C,), dtype=partial.dtype.element_ty)
    sum_normal = tl.zeros((BLOCK_C,), dtype=partial.dtype.element_ty)
    for tile in range(tiles):
        v = (chunk * tiles + tile) * BLOCK_V + tl.arange(0, BLOCK_V)
        w, h, d = v % width, v // width % height, v // (width * height)
        inside = (v < voxels)[:, None] & inside_c[None, :]
        total = read_back(
            grad_0, largest_0, sample, d, h, w, c, inside, channels, total_0, start_0, group_0, margin_0,
            depth, height, width, DS_0, POOLED_0, PD_0, PH_0, PW_0, VECTOR,
        )  # fmt: skip
        if READERS > 1:
            total += read_back(
                grad_1, largest_1, sample, d, h, w, c, inside, channels, total_1, start_1, group_1, margin_1,
                depth, height, width, DS_1, POOLED_1, PD_1, PH_1, PW_1, VECTOR,
            )  # fmt: skip
        if READERS > 2:
            total += read_back(
                grad_2, largest_2, sample, d, h, w, c, inside, channels, total_2, start_2, group_2, margin_2,
                depth, height, width, DS_2, POOLED_2, PD_2, PH_2, PW_2, VECTOR,
            )  # fmt: skip
        if READERS > 3:
            total += read_back(
                grad_3, largest_3, sample, d, h, w, c, inside, channels, total_3, start_3, group_3, margin_3,
                depth, height, width, DS_3, POOLED_3, PD_3, PH_3, PW_3, VECTOR,
            )  # fmt: skip
        place = (v * channels)[:, None] + c[None, :]
        x = wide(tl.load(values + own + place, mask=inside, other=0.0))
        total = tl.where(x * scale + offset > 0, total, total * slope)
        tl.store(out + own + place, total.to(out.dtype.element_ty), mask=inside)
        sum_plain += tl.sum(total, 0)
        sum_normal += tl.sum(total * (x - mean) * rstd, 0)
    target = partial + ((sample * tl.num_programs(0) + chunk) * 2) * channels + c
    tl.store(target, sum_plain, mask=inside_c)
    tl.store(target + channels, sum_normal, mask=inside_c)


@triton.jit
def add_chunks(partial, sums, columns, chunks, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Add (B, chunks, columns) over the chunks, always in the same order."""
    block_c, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), dtype=partial.dtype.element_ty)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        valid = (chunk < chunks)[:, None] & (c < columns)[None, :]
        place = (sample * chunks + chunk)[:, None] * columns + c[None, :]
        total += tl.sum(tl.load(partial + place, mask=valid, other=0.0), 0)
    tl.store(sums + sample * columns + c, total, mask=c < columns)


@triton.jit
def norm_gradient(grad, values, affine, sums, out, voxels, channels, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write the gradient of what a convolution wrote."""
    block_v, block_c, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    v = block_v * BLOCK_V + tl.arange(0, BLOCK_V)
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_c = c < channels
    inside = (v < voxels)[:, None] & inside_c[None, :]
    row = affine + sample * 4 * channels + c
    scale = tl.load(row, mask=inside_c, other=0.0)[None, :]
    mean = tl.load(row + 2 * channels, mask=inside_c, other=0.0)[None, :]
    rstd = tl.load(row + 3 * channels, mask=inside_c, other=0.0)[None, :]
    plain = tl.load(sums + sample * 2 * channels + c, mask=inside_c, other=0.0)[None, :] / voxels
    normal = tl.load(sums + (sample * 2 + 1) * channels + c, mask=inside_c, other=0.0)[None, :] / voxels
    own, place = sample * voxels * channels, (v * channels)[:, None] + c[None, :]
    given = wide(tl.load(grad + own + place, mask=inside, other=0.0))
    x = wide(tl.load(values + own + place, mask=inside, other=0.0))
    found = scale * (given - plain - (x - mean) * rstd * normal)
    tl.store(out + own + place, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def block_gradient(
    grad, out, channels, total, start, group, margin, depth, height, width,
    DEPTH_STRIDE: tl.constexpr, SD: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradient of an expansion's products (B, D / sd, H / sh, W / sw, sd, sh, sw, C), in their order."""
    block_v, block_c, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    r = block_v * BLOCK_V + tl.arange(0, BLOCK_V)
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    voxels = depth * height * width
    tap, coarse = r % (SD * SH * SW), r // (SD * SH * SW)
    w = coarse % (width // SW) * SW + tap % SW
    h = coarse // (width // SW) % (height // SH) * SH + tap // SW % SH
    d = coarse // ((width // SW) * (height // SH)) * SD + tap // (SW * SH)
    inside = (r < voxels)[:, None] & (c < channels)[None, :]
    found = read_back(
        grad, grad, sample, d, h, w, c, inside, channels, total, start, group, margin, depth, height, width,
        DEPTH_STRIDE, False, 1, 1, 1, VECTOR,
    )  # fmt: skip
    place = (r * channels)[:, None] + c[None, :]
    tl.store(out + sample * voxels * channels + place, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def weight_gradients(table, GIVEN: tl.constexpr, WANTED: tl.constexpr, BLOCK: tl.constexpr):
    """Write gradients (dim 0, taps, dim 1) as (dim 0, dim 1, taps).

    A row of the table (int64): addresses of the given and the wanted gradient, dim 0, dim 1, taps, and the strides of
    the given one along its three axes.
    """
    row = table + tl.program_id(0) * 8
    given = tl.load(row).to(tl.pointer_type(GIVEN))
    wanted = tl.load(row + 1).to(tl.pointer_type(WANTED))
    dim1, taps = tl.load(row + 3), tl.load(row + 4)
    step_0, step_taps, step_1 = tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    count = tl.load(row + 2) * dim1 * taps
    for first in range(tl.program_id(1) * BLOCK, count, tl.num_programs(1) * BLOCK):
        index = first + tl.arange(0, BLOCK)
        inside = index < count
        t, j, i = index % taps, index // taps % dim1, index // (taps * dim1)
        x = tl.load(given + i * step_0 + t * step_taps + j * step_1, mask=inside, other=0.0)
        tl.store(wanted + index, x.to(WANTED), mask=inside)
