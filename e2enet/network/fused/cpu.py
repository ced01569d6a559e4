"""Run the loops for CPUs: the functions that `operations` registers there, with the arguments of `reference`.

They take float32 and bfloat16. What they do not take, such as other dtypes and chosen columns, runs in plain torch.
Volumes are cut by their sizes alone, so that sums are the same with any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from e2enet.network.compiled import parts, run_in_threads
from e2enet.network.engine.vector_code import LANES
from e2enet.network.fused import loops, reference
from e2enet.network.fused.volumes import MEAN, OFFSET, PLACE, RSTD, SCALE, channels_of, size_of, steps_of, voxels
from e2enet.network.layers import to_channels_last
from e2enet.network.operations import empty_channels_last
from e2enet.network.shift import group_shifts, plan_slabs

KINDS: dict[torch.dtype, Any] = {torch.float32: np.float32(0), torch.bfloat16: np.uint16(0)}
UNCHANGED = np.array([[1], [-0.0]], np.float32)  # scale and offset; adding -0 keeps the sign of a zero


def prepare(
    sources: Sequence[Tensor],
    affines: Sequence[Tensor | None],
    slopes: Sequence[float],
    shift_size: int,
    depth_stride: int,
    dtype: torch.dtype,
    columns: Tensor | None,
) -> Tensor:
    """Run `loops.prepare`."""
    own = sources[0].dtype
    if columns is not None or not _known(*sources, dtype=dtype) or any(source.dtype != own for source in sources):
        return reference.prepare(sources, affines, slopes, shift_size, depth_stride, dtype, columns)
    sources = [_in_memory_order(source) for source in sources]
    counts = [channels_of(source) for source in sources]
    batch, total, size = len(sources[0]), sum(counts), size_of(sources[0])
    shape = batch, total, -(-size[0] // depth_stride), *size[1:]
    out = empty_channels_last(sources[0].new_empty(0, dtype=dtype), shape)
    affine = np.tile(UNCHANGED, (batch, 1, total + LANES))
    start = 0
    for count, table in zip(counts, affines, strict=True):
        if table is not None:
            affine[:, :, start : start + count] = table[:, [SCALE, OFFSET]].numpy()
        start += count
    slabs = plan_slabs(counts, shift_size)
    rows = [
        (
            sources[slab.source].data_ptr(),
            counts[slab.source],
            slab.start,
            slab.target,
            slab.stop - slab.start,
            slab.shift,
            *steps_of(sources[slab.source]),
        )
        for slab in slabs
    ]
    leaks = [1.0 if affines[slab.source] is None else slopes[slab.source] for slab in slabs]
    given = np.array(rows, np.int64), np.array(leaks, np.float32), affine.ctypes.data
    geometry = *size, depth_stride, total

    def work(sample: int, _: int, first: int, last: int) -> None:
        loops.prepare(*_kind(own), *given, *_kind(dtype), out.data_ptr(), geometry, sample, first, last)

    _run(work, batch, prod(shape[2:4]), total * size[2])
    return out


def statistics(values: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Run `loops.add_moments`. An estimate of the mean is subtracted first, so a large mean costs no digits."""
    if not _known(values):
        return reference.statistics(values, weight, bias, eps)
    values = _in_memory_order(values)
    batch, channels = values.shape[:2]
    count = voxels(values)
    flat = values.permute(0, 2, 3, 4, 1).view(batch, count, channels)
    centres = _padded(flat[:, : loops.BLOCK_ROWS].float().mean(1).unsqueeze(1))
    sums = np.zeros((batch, len(parts(count, channels)), 2, channels + LANES))

    def work(sample: int, index: int, first: int, last: int) -> None:
        centre, partial = centres[sample].ctypes.data, sums[sample, index].ctypes.data
        loops.add_moments(*_kind(values.dtype), flat[sample].data_ptr(), channels, centre, partial, first, last)

    _run(work, batch, count, channels)
    shift, square = sums.sum(1).swapaxes(0, 1)[..., :channels] / count
    mean = centres[:, 0, :channels] + shift
    rstd = 1 / np.sqrt(np.maximum(square - shift * shift, 0) + eps)
    scale = weight.detach().double().numpy() * rstd
    table = np.stack([scale, bias.detach().double().numpy() - mean * scale, mean, rstd], axis=1)
    return torch.from_numpy(table.astype(np.float32))


def pool(values: Tensor, affine: Tensor | None, slope: float, window: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Run `loops.pool`."""
    if values.ndim != 5 or not _known(values):
        return reference.pool(values, affine, slope, window)
    values = _in_memory_order(values)
    batch, channels, *size = values.shape
    shape = *(edge // step for edge, step in zip(size, window, strict=True)), channels
    pooled = empty_channels_last(values, (batch, channels, *shape[:3]))
    largest = torch.empty_like(pooled, dtype=torch.uint8)
    if affine is None:
        affine, slope = torch.from_numpy(UNCHANGED).expand(batch, 2, channels), 1.0
    table = _padded(affine[:, :2])
    given = values.data_ptr(), table.ctypes.data, np.float32(slope), pooled.data_ptr(), largest.data_ptr()

    def work(sample: int, _: int, first: int, last: int) -> None:
        loops.pool(*_kind(values.dtype), *given, shape, tuple(window), sample, first, last)

    _run(work, batch, shape[0] * shape[1], shape[2] * channels * prod(window))
    return pooled, largest


def gather_gradient(
    values: Tensor,
    affine: Tensor,
    slope: float,
    grads: Sequence[Tensor],
    largest: Sequence[Tensor | None],
    places: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Run `loops.gather_gradient`."""
    table = [places[PLACE * index : PLACE * (index + 1)] for index in range(len(grads))]
    steps = {place[-1] for place, numbers in zip(table, largest, strict=True) if numbers is not None}
    if len(steps) > 1 or not _known(values) or any(grad.dtype != values.dtype for grad in grads):
        return reference.gather_gradient(values, affine, slope, grads, largest, places)
    values, grads = _in_memory_order(values), [_in_memory_order(grad) for grad in grads]
    numbers = [None if one is None else to_channels_last(one) for one in largest]
    batch, channels, *size = values.shape
    out = empty_channels_last(values, values.shape)
    runs = _runs(channels, [(grad.shape[1], place) for grad, place in zip(grads, table, strict=True)])
    readers = _readers(grads, numbers, table)
    norm = _padded(affine)
    sums = np.zeros((batch, len(parts(size[0] * size[1], size[2] * channels)), 2, channels + LANES))
    shape = *size, channels, max(steps, default=1)
    given = values.data_ptr(), norm.ctypes.data, np.float32(slope), out.data_ptr()

    def work(sample: int, index: int, first: int, last: int) -> None:
        own = sums[sample, index].ctypes.data
        loops.gather_gradient(*_kind(values.dtype), *given, own, readers, runs, shape, sample, first, last)

    _run(work, batch, size[0] * size[1], size[2] * channels)
    return out, torch.from_numpy(sums.sum(1)[..., :channels].astype(np.float32))


def norm_gradient(grad: Tensor, values: Tensor, affine: Tensor, sums: Tensor) -> Tensor:
    """Run `loops.norm_gradient`."""
    if not _known(grad, values) or grad.dtype != values.dtype:
        return reference.norm_gradient(grad, values, affine, sums)
    grad, values = _in_memory_order(grad), _in_memory_order(values)
    batch, channels = values.shape[:2]
    out, count = empty_channels_last(values, values.shape), voxels(values)
    means = sums / count
    table = _padded(torch.stack([affine[:, SCALE], means[:, 0], affine[:, MEAN], affine[:, RSTD] * means[:, 1]], dim=1))

    def work(sample: int, _: int, first: int, last: int) -> None:
        given = (one.data_ptr() + sample * count * channels * one.element_size() for one in (grad, values))
        written = out.data_ptr() + sample * count * channels * out.element_size()
        loops.norm_gradient(*_kind(values.dtype), *given, table[sample].ctypes.data, written, channels, first, last)

    _run(work, batch, count, channels)
    return out


def block_gradient(grad: Tensor, place: Sequence[int], products: Sequence[int]) -> Tensor:
    """Run `loops.block_gradient`."""
    if not _known(grad):
        return reference.block_gradient(grad, place, products)
    grad, out = _in_memory_order(grad), grad.new_empty(list(products))
    size, channels = size_of(out), channels_of(out)
    runs, readers = _runs(channels, [(grad.shape[1], place)]), _readers([grad], [None], [place])
    shape = *size, channels, 1

    def work(sample: int, _: int, first: int, last: int) -> None:
        loops.block_gradient(
            *_kind(grad.dtype), readers, runs, out.data_ptr(), steps_of(out), shape, sample, first, last
        )

    _run(work, len(out), size[0] * size[1], size[2] * channels)
    return out


def active_weights(weights: Sequence[Tensor], masks: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    """Run `loops.active_weights`, once for each weight."""
    if dtype not in KINDS or any(weight.dtype != torch.float32 for weight in weights):
        return reference.active_weights(weights, masks, dtype)
    found = []
    for weight, mask in zip(weights, masks, strict=True):
        rows = weight.detach().flatten(2).contiguous().numpy()
        active = np.empty((0, 0), bool) if mask is None else mask.contiguous().numpy()
        out = weight.new_empty((rows.shape[0], rows.shape[2], rows.shape[1]), dtype=dtype)

        def work(
            _: int, __: int, first: int, last: int, rows: Any = rows, active: Any = active, out: Any = out
        ) -> None:
            loops.active_weights(rows, active, *_kind(dtype), out.data_ptr(), first, last)

        _run(work, 1, rows.shape[0], rows[0].size)
        found.append(out)
    return found


weight_gradients = reference.weight_gradients  # a pass of torch for each


def _known(*tensors: Tensor, dtype: torch.dtype = torch.float32) -> bool:
    return dtype in KINDS and all(tensor.dtype in KINDS for tensor in tensors)


def _kind(dtype: torch.dtype) -> tuple[Any, int]:
    return KINDS[dtype], dtype.itemsize


def _in_memory_order(values: Tensor) -> Tensor:
    """Return values with their channels together, as the loops read them."""
    return to_channels_last(values) if values.ndim == 5 else values.contiguous()


def _padded(table: Tensor) -> np.ndarray:
    """Return (.., C) with LANES more columns, float32."""
    found = np.zeros((*table.shape[:-1], table.shape[-1] + LANES), np.float32)
    found[..., : table.shape[-1]] = table.detach().numpy()
    return found


def _readers(grads: Sequence[Tensor], numbers: Sequence[Tensor | None], places: Sequence[Sequence[int]]) -> np.ndarray:
    """Return what `loops.gather_gradient` takes of each reader, (readers, 8) int64."""
    rows = [
        (grad.data_ptr(), grad.shape[1], start, depth_stride, 0 if largest is None else largest.data_ptr(), *window)
        for grad, largest, (start, _, depth_stride, *window) in zip(grads, numbers, places, strict=True)
    ]
    return np.array(rows, np.int64)


def _runs(channels: int, readers: Sequence[tuple[int, Sequence[int]]]) -> np.ndarray:
    """Return the runs of channels that no reader cuts, (runs, 2 + readers) int64: first, last, shift for each reader.

    readers: channels of the gradient, and `Reader.place`.
    """
    shifts = [
        [shift for first, last, shift in group_shifts(total, shift_size) for _ in range(first, last)][start:][:channels]
        for total, (start, shift_size, *_) in readers
    ]
    columns = np.array(shifts, np.int64).T
    cuts = [0, *(np.flatnonzero((columns[1:] != columns[:-1]).any(axis=1)) + 1).tolist(), channels]
    rows = [(first, last, *columns[first]) for first, last in pairwise(cuts)]
    return np.array(rows, np.int64)


def _run(work: Any, batch: int, rows: int, columns: int) -> None:
    """Call `work(sample, index, first, last)` for parts of `rows` of `columns` values of every sample, in threads."""
    cuts = parts(rows, columns)
    run_in_threads(work, [(sample, index, *cut) for sample in range(batch) for index, cut in enumerate(cuts)])
