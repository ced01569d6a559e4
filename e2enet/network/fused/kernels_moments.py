"""Triton kernels that take the statistics of instance norms, exact though the mean may be far from zero.

A part of a sample has a mean and the sum of squared differences from it. Parts are merged by Chan, Golub and LeVeque's
formula ("Updating formulae and a pairwise algorithm for computing sample variances", 1979), so nothing large is
subtracted from anything large.
"""

from __future__ import annotations

import triton
import triton.language as tl

from e2enet.network.fused.kernels_forward import wide


@triton.jit
def moments(values, partial, counts, voxels, channels, tiles, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write mean and sum of squared differences from it of a chunk of `tiles` blocks, (B, chunks, 2, C).

    counts: (chunks,), the voxels of each.
    """
    chunk, block_c, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_c = c < channels
    mean = tl.zeros((BLOCK_C,), dtype=partial.dtype.element_ty)
    spread = tl.zeros((BLOCK_C,), dtype=partial.dtype.element_ty)
    first = chunk * tiles * BLOCK_V
    for tile in range(tiles):
        v = first + tile * BLOCK_V + tl.arange(0, BLOCK_V)
        valid = (v < voxels)[:, None] & inside_c[None, :]
        place = (v * channels)[:, None] + c[None, :]
        x = wide(tl.load(values + sample * voxels * channels + place, mask=valid, other=0.0))
        count = 1.0 * tl.minimum(tl.maximum(voxels - (first + tile * BLOCK_V), 0), BLOCK_V)
        before = 1.0 * tile * BLOCK_V  # all earlier blocks are full if this one has voxels
        own = tl.sum(x, 0) / tl.maximum(count, 1.0)
        away = tl.where(valid, x - own[None, :], 0.0)
        step = (own - mean) * (count / tl.maximum(before + count, 1.0))
        spread += tl.sum(away * away, 0) + (own - mean) * step * before
        mean += step
    target = partial + ((sample * tl.num_programs(0) + chunk) * 2) * channels + c
    tl.store(target, mean, mask=inside_c)
    tl.store(target + channels, spread, mask=inside_c)
    tl.store(counts + chunk, tl.minimum(voxels - first, tiles * BLOCK_V).to(mean.dtype))  # all programs the same


@triton.jit
def merged_moments(
    partial, counts, first, stop, c, inside_c, channels, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Return voxels, mean and sum of squared differences of the parts first..stop, always in the same order.

    partial: (parts, 2, C) of one sample. counts: (parts,), the voxels of each.
    """
    total = tl.zeros((CHUNKS,), dtype=partial.dtype.element_ty)
    for start in range(first, stop, CHUNKS):
        part = start + tl.arange(0, CHUNKS)
        total += tl.load(counts + part, mask=part < stop, other=0.0)
    voxels = tl.sum(total, 0)
    mean = tl.zeros((BLOCK_C,), dtype=partial.dtype.element_ty)
    for start in range(first, stop, CHUNKS):
        part = start + tl.arange(0, CHUNKS)
        count = tl.load(counts + part, mask=part < stop, other=0.0)
        place = (part * 2 * channels)[:, None] + c[None, :]
        valid = (part < stop)[:, None] & inside_c[None, :]
        mean += tl.sum(tl.load(partial + place, mask=valid, other=0.0) * (count / voxels)[:, None], 0)
    spread = tl.zeros((BLOCK_C,), dtype=partial.dtype.element_ty)
    for start in range(first, stop, CHUNKS):
        part = start + tl.arange(0, CHUNKS)
        count = tl.load(counts + part, mask=part < stop, other=0.0)
        place = (part * 2 * channels)[:, None] + c[None, :]
        valid = (part < stop)[:, None] & inside_c[None, :]
        away = tl.load(partial + place, mask=valid, other=0.0) - mean[None, :]
        own = tl.load(partial + place + channels, mask=valid, other=0.0)
        spread += tl.sum(tl.where(valid, own + away * away * count[:, None], 0.0), 0)
    return voxels, mean, spread


@triton.jit
def norm_table(
    partial, counts, weight, bias, table, eps, channels, chunks, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Write (B, 4, C) from the partial moments of all chunks."""
    block_c, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_c = c < channels
    voxels, mean, spread = merged_moments(
        partial + sample * chunks * 2 * channels, counts, 0, chunks, c, inside_c, channels, CHUNKS, BLOCK_C
    )
    rstd = 1 / tl.sqrt(spread / voxels + eps)
    scale = wide(tl.load(weight + c, mask=inside_c, other=0.0)) * rstd
    offset = wide(tl.load(bias + c, mask=inside_c, other=0.0)) - mean * scale
    target = table + sample * 4 * channels + c
    tl.store(target, scale, mask=inside_c)
    tl.store(target + channels, offset, mask=inside_c)
    tl.store(target + 2 * channels, mean, mask=inside_c)
    tl.store(target + 3 * channels, rstd, mask=inside_c)


@triton.jit
def merge_moments(
    partial, counts, merged, merged_counts, channels, tiles, chunk_tiles, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write the moments of chunks of `chunk_tiles` tiles each, (B, chunks, 2, C), and their voxels, (chunks,)."""
    chunk, block_c, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_c = c < channels
    first = chunk * chunk_tiles
    stop = tl.minimum(first + chunk_tiles, tiles)
    count, mean, spread = merged_moments(
        partial + sample * tiles * 2 * channels, counts, first, stop, c, inside_c, channels, CHUNKS, BLOCK_C
    )
    target = merged + ((sample * tl.num_programs(0) + chunk) * 2) * channels + c
    tl.store(target, mean, mask=inside_c)
    tl.store(target + channels, spread, mask=inside_c)
    tl.store(merged_counts + chunk, count)
