"""Start the kernels of convolutions that prepare what they read, with the arguments of `reference_implicit`.

Tiles depend on shapes and dtypes alone, so that sums are taken in the same order in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from e2enet.network.fused import kernels_backward, kernels_implicit, kernels_moments
from e2enet.network.fused.launch import (
    CHUNKS,
    MERGED_CHANNELS,
    MOST_SOURCES,
    check_size,
    in_memory_order,
    on_device_of,
    shift_groups,
    vector_of,
)
from e2enet.network.fused.volumes import TILE_VOXELS, channels_of, convolved_size, size_of, steps_of
from e2enet.network.layers import Triple
from e2enet.network.operations import empty_channels_last

OFFERED = (torch.float16, torch.bfloat16, torch.float32)
PROGRAMS = 256  # wanted of a kernel: about two for each multiprocessor of a large GPU
ROW = 16  # voxels of a tile that lie side by side: rows above and below are read by the same program
REGISTERS = 255  # of a thread, at most: without it the assembler spills a few to have room for more programs
MERGED = 64  # chunks of tiles whose moments are merged side by side


class Tile(NamedTuple):
    """A program's part of a volume: a box of voxels."""

    depth: int
    height: int
    width: int

    def count(self, size: Sequence[int]) -> int:
        """Return how many tiles cover a volume."""
        return prod(triton.cdiv(edge, own) for edge, own in zip(size, self, strict=True))


def convolve(
    sources: Sequence[Tensor],
    affines: Sequence[Tensor | None],
    slopes: Sequence[float],
    shift_size: int,
    weight: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Start `kernels_implicit.convolve`, and the kernels of `kernels_moments` that merge what its tiles found."""
    size = convolved_size(size_of(sources[0]), kernel, stride, padding)
    outputs = len(weight)
    steps = weight.stride(2), weight.stride(1), weight.stride(0)
    allow_tf32 = torch.backends.cudnn.allow_tf32
    out, partial, counts = _convolve(
        sources, affines, slopes, shift_size, weight, steps, outputs, size, kernel, stride, padding,
        allow_tf32=allow_tf32, moments=True,
    )  # fmt: skip
    batch, tiles = partial.shape[:2]
    across = triton.cdiv(outputs, MERGED_CHANNELS)
    with on_device_of(out):
        if tiles > 4 * CHUNKS:
            chunk_tiles = triton.cdiv(tiles, MERGED)
            chunks = triton.cdiv(tiles, chunk_tiles)
            merged, merged_counts = partial.new_empty((batch, chunks, 2, outputs)), counts.new_empty(chunks)
            kernels_moments.merge_moments[chunks, across, batch](
                partial, counts, merged, merged_counts, outputs, tiles, chunk_tiles, CHUNKS, MERGED_CHANNELS
            )
            partial, counts, tiles = merged, merged_counts, chunks
        table = partial.new_empty((batch, 4, outputs))
        kernels_moments.norm_table[across, batch](
            partial,
            counts,
            norm_weight.contiguous(),
            norm_bias.contiguous(),
            table,
            eps,
            outputs,
            tiles,
            CHUNKS,
            MERGED_CHANNELS,
        )
    return out, table


def product(
    sources: Sequence[Tensor], affines: Sequence[Tensor | None], slopes: Sequence[float], weight: Tensor
) -> Tensor:
    """Start `kernels_implicit.convolve` for a kernel of one voxel."""
    steps, size = (weight.stride(0), 0, weight.stride(1)), size_of(sources[0])
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    out, _, _ = _convolve(
        sources, affines, slopes, 1, weight, steps, weight.shape[1], size, (1, 1), (1, 1, 1), (0, 0),
        allow_tf32=allow_tf32, moments=False,
    )  # fmt: skip
    return out


def correlate(
    sources: Sequence[Tensor],
    affines: Sequence[Tensor | None],
    slopes: Sequence[float],
    shift_size: int,
    grad: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Start `kernels_implicit.correlate` for each source, and `kernels_backward.add_chunks`."""
    check_dtype(grad.dtype)
    grad = in_memory_order(grad)
    batch, outputs, *size = grad.shape
    _, height, width = whole = size_of(sources[0])
    counts = [channels_of(source) for source in sources]
    total, taps = sum(counts), prod(kernel)
    group, margin = shift_groups(total, shift_size)
    half = grad.dtype.itemsize == 2  # tiles of the gradient for every tap lie in shared memory twice
    block_n, block_c = min(max(16, triton.next_power_of_2(outputs)), 64 if half else 32), 16
    tile = choose_tile((size[0], height, width), PROGRAMS, TILE_VOXELS // (4 if half else 8))
    tiles = tile.count((size[0], height, width))
    blocks = triton.cdiv(outputs, block_n) * sum(triton.cdiv(count, block_c) for count in counts)
    chunk_tiles = triton.cdiv(batch * tiles, triton.cdiv(4 * PROGRAMS, blocks))
    chunks = triton.cdiv(batch * tiles, chunk_tiles)
    partial = grad.new_empty((chunks, outputs, taps, total), dtype=torch.float32)
    out = grad.new_empty((outputs, taps, total))
    precision = precision_of(grad.dtype, allow_tf32=torch.backends.cudnn.allow_tf32)
    with on_device_of(grad):
        start = 0
        for source, affine, slope, count in zip(sources, affines, slopes, counts, strict=True):
            own = in_memory_order(source)
            kernels_implicit.correlate[chunks, triton.cdiv(outputs, block_n), triton.cdiv(count, block_c)](
                own, own if affine is None else affine, slope, grad, partial, count, start, total, outputs, batch,
                tiles, chunk_tiles, *whole, *size, group, margin, affine is not None, *steps_of(own),
                *kernel, *stride, *padding, precision, vector_of(count, start, group), *tile, block_c, block_n,
                num_warps=4 if half else 8, num_stages=1, maxnreg=REGISTERS,
            )  # fmt: skip
            start += count
        kernels_backward.add_chunks[triton.cdiv(out.numel(), 64), 1](partial, out, out.numel(), chunks, CHUNKS, 64)
    return out


def _convolve(
    sources: Sequence[Tensor],
    affines: Sequence[Tensor | None],
    slopes: Sequence[float],
    shift_size: int,
    weight: Tensor,
    steps: Triple,
    outputs: int,
    size: Triple,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    allow_tf32: bool,
    moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the convolution, (B, outputs, *size), and the moments of its tiles and their voxels."""
    check_dtype(weight.dtype)
    assert len(sources) <= MOST_SOURCES
    sources = [in_memory_order(source) for source in sources]
    counts = [channels_of(source) for source in sources]
    batch = len(sources[0])
    out = empty_channels_last(weight, (batch, outputs, *size))
    check_size(out)
    group, margin = shift_groups(sum(counts), shift_size)
    half = weight.dtype.itemsize == 2  # factors of float32 take twice the registers
    block_n = min(max(16, triton.next_power_of_2(outputs)), 128 if half else 64)
    blocks_n = triton.cdiv(outputs, block_n)
    tile = choose_tile(size, batch * blocks_n, TILE_VOXELS if half else TILE_VOXELS // 2)
    tiles = tile.count(size)
    partial = weight.new_empty((batch, tiles, 2, outputs) if moments else (0, 0, 0, 0), dtype=torch.float32)
    voxels = weight.new_empty(tiles if moments else 0, dtype=torch.float32)
    vector = vector_of(*counts, group)
    block_k = block_of_runs(counts, group) if half and vector > 1 else 16
    unused: Any = (out, out, 1.0, 1)
    given = [
        (source, out if affine is None else affine, slope, count)
        for source, affine, slope, count in zip(sources, affines, slopes, counts, strict=True)
    ]
    first, second, third = [*given, unused, unused][:MOST_SOURCES]
    has = [*(affine is not None for affine in affines), False, False][:MOST_SOURCES]
    blocks = [*map(steps_of, sources), (1, 1, 1), (1, 1, 1)][:MOST_SOURCES]
    precision = precision_of(weight.dtype, allow_tf32=allow_tf32)
    with on_device_of(out):
        kernels_implicit.convolve[tiles * blocks_n, batch](
            *first, *second, *third, weight, out, partial, voxels, outputs, tiles,
            *size_of(sources[0]), *size, group, margin, *steps, *has, *blocks[0], *blocks[1], *blocks[2], len(sources),
            *kernel, *stride, *padding, precision, vector, moments, *tile, block_k, block_n,
            num_warps=warps_of(prod(tile) * block_n, exact=not half and precision == "ieee"), maxnreg=REGISTERS,
        )  # fmt: skip
    return out, partial, voxels


def check_dtype(dtype: torch.dtype) -> None:
    """Raise ValueError for a dtype that the kernels do not multiply in."""
    if dtype not in OFFERED:
        expected = ", ".join(str(one) for one in OFFERED)
        raise ValueError(f"convolutions that prepare what they read compute in {expected}, not in {dtype}")


def precision_of(dtype: torch.dtype, *, allow_tf32: bool) -> str:
    """Return the `input_precision` of tl.dot: float32 factors are rounded to TF32 only where torch may do so too."""
    return "tf32" if dtype == torch.float32 and allow_tf32 else "ieee"


def choose_tile(size: Triple, times: int, voxels: int) -> Tile:
    """Return a box of so many voxels, or of fewer if there would be less than PROGRAMS programs, `times` for each box.

    It is ROW voxels wide where the volume is, and as deep as is left over where the planes are small.
    """
    while True:
        width = min(ROW, triton.next_power_of_2(size[2]), voxels)
        height = min(triton.next_power_of_2(size[1]), voxels // width)
        tile = Tile(voxels // (width * height), height, width)
        if voxels == 16 or tile.count(size) * times >= PROGRAMS:
            return tile
        voxels //= 2


def block_of_runs(counts: Sequence[int], group: int) -> int:
    """Return how many channels are multiplied at once: 32, or 16 if runs of channels would leave many of 32 unused."""
    runs, start = [], 0
    for count in counts:
        ends = [edge for edge in range(0, start + count + group, group) if start < edge < start + count]
        edges = [start, *ends, start + count]
        runs += [stop - first for first, stop in pairwise(edges)]
        start += count
    used = sum(-(-run // 32) * 32 for run in runs)
    return 32 if used <= 1.125 * sum(runs) else 16


def warps_of(values: int, *, exact: bool) -> int:
    """Return the warps of a program that holds so many float32 sums: 64 for each thread, or less for exact products.

    Tensor cores do not compute these, so their factors lie in registers too.
    """
    return 8 if exact else min(max(4, values // 2048), 8)
