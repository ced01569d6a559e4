"""Start the Triton kernels: the functions that `operations` registers for CUDA, with the arguments of `reference`.

Grids depend on shapes alone, so that sums are taken in the same order on every device and in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from math import prod
from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

from e2enet.network.fused import kernels_backward, kernels_forward, kernels_moments
from e2enet.network.fused.volumes import PLACE, channels_of, size_of, steps_of, voxels
from e2enet.network.layers import to_channels_last
from e2enet.network.operations import empty_channels_last

VECTOR = 8  # channels that a thread reads at once, where groups begin at multiples of it
TILE = 2048  # voxels times channels that a program holds
PROGRAMS = 1024  # of a kernel that sums: about eight for each multiprocessor of a large GPU
CHUNKS = 32  # partial sums that are added at once
MERGED_CHANNELS = 16  # of a program that merges moments
MOST_SOURCES, MOST_READERS = 3, 4
LARGEST = 2**31 - 1  # values of a sample: places in it are 32 bit numbers
DTYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def prepare(
    sources: Sequence[Tensor],
    affines: Sequence[Tensor | None],
    slopes: Sequence[float],
    shift_size: int,
    depth_stride: int,
    dtype: torch.dtype,
    columns: Tensor | None,
) -> Tensor:
    """Start `kernels_forward.prepare`, or `prepare_columns` for chosen channels."""
    assert len(sources) <= MOST_SOURCES
    sources = [in_memory_order(source) for source in sources]
    counts = [channels_of(source) for source in sources]
    depth, height, width = size_of(sources[0])
    depth_out, total = -(-depth // depth_stride), sum(counts) if columns is None else len(columns)
    out = empty_channels_last(sources[0].new_empty(0, dtype=dtype), (len(sources[0]), total, depth_out, height, width))
    check_size(out)
    block_c = min(map(_block_of, counts)) if columns is None else _block_of(total)
    group, margin = shift_groups(sum(counts), shift_size)
    blocks = [triton.cdiv(count, block_c) for count in counts]
    starts = [sum(counts[:index]) for index in range(len(counts))]
    vector = vector_of(*counts, *starts, group, block_c)
    block_v = (TILE if vector > 1 or columns is not None else TILE // 2) // block_c  # each voxel alone: more registers
    unused: Any = (out, out, 1.0, 1, 0)
    given = [
        (source, out if affine is None else affine, slope, count, block)
        for source, affine, slope, count, block in zip(sources, affines, slopes, counts, blocks, strict=True)
    ]
    first, second, third = [*given, unused, unused][:MOST_SOURCES]
    has = [*(affine is not None for affine in affines), False, False][:MOST_SOURCES]
    steps = [*map(steps_of, sources), (1, 1, 1), (1, 1, 1)][:MOST_SOURCES]
    places = total, depth, height, width, depth_out, group, margin
    constants = *has, *steps[0], *steps[1], *steps[2], len(sources), depth_stride
    across = triton.cdiv(depth_out * height * width, block_v)
    with on_device_of(out):
        if columns is None:
            kernels_forward.prepare[across, sum(blocks), len(out)](
                *first, *second, *third[:4], out, *places, *constants, vector, block_v, block_c
            )
        else:
            kernels_forward.prepare_columns[across, triton.cdiv(total, block_c), len(out)](
                *first, *second, *third[:4], out, *places, columns, *constants, block_v, block_c
            )
    return out


def statistics(values: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Start `kernels_moments.moments` and `kernels_moments.norm_table`."""
    values, weight, bias = in_memory_order(values), weight.contiguous(), bias.contiguous()
    batch, channels = values.shape[:2]
    dtype = torch.promote_types(values.dtype, torch.float32)
    block_c, block_v, chunks, tiles = _chunks(values)
    partial = values.new_empty((batch, chunks, 2, channels), dtype=dtype)
    counts = values.new_empty(chunks, dtype=dtype)
    table = values.new_empty((batch, 4, channels), dtype=dtype)
    with on_device_of(values):
        kernels_moments.moments[chunks, triton.cdiv(channels, block_c), batch](
            values, partial, counts, voxels(values), channels, tiles, block_v, block_c
        )
        kernels_moments.norm_table[triton.cdiv(channels, MERGED_CHANNELS), batch](
            partial, counts, weight, bias, table, eps, channels, chunks, CHUNKS, MERGED_CHANNELS
        )
    return table


def pool(values: Tensor, affine: Tensor | None, slope: float, window: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Start `kernels_forward.pool`."""
    values = in_memory_order(values)
    batch, channels, *size = values.shape
    coarse = [edge // step for edge, step in zip(size, window, strict=True)]
    pooled = empty_channels_last(values, (batch, channels, *coarse))
    largest = torch.empty_like(pooled, dtype=torch.uint8)
    block_c = _block_of(channels)
    block_v = TILE // 2 // block_c
    with on_device_of(values):
        kernels_forward.pool[triton.cdiv(prod(coarse), block_v), triton.cdiv(channels, block_c), batch](
            values, values if affine is None else affine, slope, pooled, largest, channels, *size,
            affine is not None, *window, block_v, block_c,
        )  # fmt: skip
    return pooled, largest


def gather_gradient(
    values: Tensor,
    affine: Tensor,
    slope: float,
    grads: Sequence[Tensor],
    largest: Sequence[Tensor | None],
    places: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Start `kernels_backward.gather_gradient` and `kernels_backward.add_chunks`."""
    assert 1 <= len(grads) <= MOST_READERS
    values = in_memory_order(values)
    batch, channels, *size = values.shape
    block_c, block_v, chunks, tiles = _chunks(values, TILE // 2)
    out = empty_channels_last(values, values.shape)
    partial = affine.new_empty((batch, chunks, 2, channels))
    sums = affine.new_empty((batch, 2, channels))
    given: list[Any] = []
    constants: list[Any] = []
    aligned = [channels, block_c]
    for index, (grad, chosen) in enumerate(zip(grads, largest, strict=True)):
        start, shift_size, depth_stride, *window = places[PLACE * index : PLACE * (index + 1)]
        group, margin = shift_groups(grad.shape[1], shift_size)
        aligned += [start, group, grad.shape[1]]
        given += [in_memory_order(grad), values if chosen is None else chosen, grad.shape[1], start, group, margin]
        constants += [depth_stride, chosen is not None, *window]
    for _ in range(MOST_READERS - len(grads)):
        given += [values, values, 1, 0, 1, 0]
        constants += [1, False, 1, 1, 1]
    with on_device_of(values):
        kernels_backward.gather_gradient[chunks, triton.cdiv(channels, block_c), batch](
            values, affine, slope, out, partial, channels, *size, tiles, *given, *constants,
            len(grads), vector_of(*aligned), block_v, block_c,
        )  # fmt: skip
        kernels_backward.add_chunks[triton.cdiv(2 * channels, 64), batch](
            partial, sums, 2 * channels, chunks, CHUNKS, 64
        )
    return out, sums


def norm_gradient(grad: Tensor, values: Tensor, affine: Tensor, sums: Tensor) -> Tensor:
    """Start `kernels_backward.norm_gradient`."""
    values, grad = in_memory_order(values), in_memory_order(grad)
    batch, channels = values.shape[:2]
    out, count, block_c = empty_channels_last(values, values.shape), voxels(values), _block_of(channels)
    block_v = TILE // block_c
    with on_device_of(values):
        kernels_backward.norm_gradient[triton.cdiv(count, block_v), triton.cdiv(channels, block_c), batch](
            grad, values, affine, sums, out, count, channels, block_v, block_c
        )
    return out


def block_gradient(grad: Tensor, place: Sequence[int], products: Sequence[int]) -> Tensor:
    """Start `kernels_backward.block_gradient`."""
    grad, out = in_memory_order(grad), grad.new_empty(list(products))
    start, shift_size, depth_stride, *_ = place
    channels, total, size = channels_of(out), grad.shape[1], size_of(out)
    group, margin = shift_groups(total, shift_size)
    block_c = _block_of(channels)
    block_v = TILE // block_c
    with on_device_of(grad):
        kernels_backward.block_gradient[triton.cdiv(prod(size), block_v), triton.cdiv(channels, block_c), len(out)](
            grad, out, channels, total, start, group, margin, *size, depth_stride, *steps_of(out),
            vector_of(channels, total, start, group, block_c), block_v, block_c,
        )  # fmt: skip
    return out


def active_weights(weights: Sequence[Tensor], masks: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """Start `kernels_forward.active_weights`, once for all weights."""
    weights = [weight.contiguous() for weight in weights]
    masks = [None if mask is None else mask.contiguous() for mask in masks]
    shapes = [(weight.shape[0], weight.shape[1], prod(weight.shape[2:])) for weight in weights]
    # Each begins at 16 bytes or more, as vectors and tensor cores ask for.
    starts = [0]
    for shape in shapes:
        starts.append(starts[-1] + -(-prod(shape) // 16) * 16)
    flat = weights[0].new_empty(starts[-1], dtype=dtype)
    table = _table(
        flat.device,
        tuple(
            (weight.data_ptr(), 0 if mask is None else mask.data_ptr(), start, *shape)
            for weight, mask, start, shape in zip(weights, masks, starts, shapes, strict=False)
        ),
    )
    with on_device_of(flat):
        kernels_forward.active_weights[len(weights), 64](table, flat, DTYPES[weights[0].dtype], 1024)
    return [
        flat[start : start + prod(shape)].view(shape[0], shape[2], shape[1])
        for start, shape in zip(starts, shapes, strict=False)
    ]


def weight_gradients(grads: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Start `kernels_backward.weight_gradients`, once for all gradients."""
    found = [torch.empty_like(weight, memory_format=torch.contiguous_format) for weight in weights]
    rows = tuple(
        (grad.data_ptr(), out.data_ptr(), grad.shape[0], grad.shape[2], grad.shape[1], *grad.stride())
        for grad, out in zip(grads, found, strict=True)
    )
    with on_device_of(grads[0]):
        kernels_backward.weight_gradients[len(grads), 64](
            _table(grads[0].device, rows), DTYPES[grads[0].dtype], DTYPES[weights[0].dtype], 1024
        )
    return found


@lru_cache(maxsize=8)
def _table(device: torch.device, rows: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return rows of numbers on the device. Addresses mostly stay from step to step, and the copy with them."""
    return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)


def in_memory_order(values: Tensor) -> Tensor:
    """Return values with their channels together, as the kernels read them."""
    check_size(values)
    return to_channels_last(values) if values.ndim == 5 else values.contiguous()


def check_size(values: Tensor) -> None:
    """Raise ValueError if places in a sample need more than 32 bits."""
    if values[0].numel() > LARGEST:
        raise ValueError(f"{values[0].numel()} values in a sample, more than {LARGEST}: expected a smaller patch")


def shift_groups(channels: int, shift_size: int) -> tuple[int, int]:
    """Return how many channels a group of the depth-shift has, and the shift of group 0 with the sign changed.

    One group more is left over by `torch.chunk` now and then (`shift.group_shifts`); here it has no channels.
    """
    return -(-channels // shift_size), shift_size // 2


def _block_of(channels: int) -> int:
    """Return how many channels a program takes: a power of two from 16 to 64 that divides them, or covers them."""
    return next((size for size in (64, 32, 16) if channels % size == 0), min(triton.next_power_of_2(channels), 64))


def vector_of(*numbers: int) -> int:
    """Return VECTOR if all numbers are multiples of it, else 1."""
    return VECTOR if not any(number % VECTOR for number in numbers) else 1


def _chunks(values: Tensor, tile: int = TILE) -> tuple[int, int, int, int]:
    """Return channels and voxels of a block, and how many chunks of how many blocks a sample is summed in."""
    batch, channels = values.shape[:2]
    block_c = _block_of(channels)
    block_v = tile // block_c
    blocks = triton.cdiv(voxels(values), block_v)
    wanted = max(1, PROGRAMS // (batch * triton.cdiv(channels, block_c)))
    tiles = triton.cdiv(blocks, wanted)
    return block_c, block_v, triton.cdiv(blocks, tiles), tiles


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make a GPU the current one, where kernels are started."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()
