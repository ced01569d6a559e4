"""The operations that multiply and prepare what they read, registered as those of `operations`."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

from e2enet.network.fused import reference_implicit
from e2enet.network.fused.operations import empty_table, fused_operation, nbytes
from e2enet.network.fused.volumes import TILE_VOXELS, channels_of, convolved_size, size_of
from e2enet.network.operations import empty_channels_last


def _empty_convolved(
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
    batch, outputs = len(sources[0]), len(weight)
    out = empty_channels_last(weight, (batch, outputs, *convolved_size(size_of(sources[0]), kernel, stride, padding)))
    return out, empty_table(out, norm_weight, norm_bias, eps)


def _moved_by_convolving(
    out: tuple[Tensor, Tensor], sources: Sequence[Tensor], affines: Any, slopes: Any, shift_size: int, weight: Tensor,
    kernel: Any, stride: Sequence[int], padding: Any, norm_weight: Tensor, norm_bias: Tensor, eps: float,
) -> int:  # fmt: skip
    # What several programs read of a source is in the cache after the first. Each tile of 128 voxels has two float32
    # numbers per channel, which are written and read.
    values, table = out
    moments = 2 * 2 * 4 * values.numel() // TILE_VOXELS
    read = nbytes(*sources) // stride[0] + nbytes(*affines, weight, norm_weight, norm_bias)
    return read + nbytes(values, table) + moments


def _empty_product(
    sources: Sequence[Tensor], affines: Sequence[Tensor | None], slopes: Sequence[float], weight: Tensor
) -> Tensor:
    return empty_channels_last(weight, (len(sources[0]), weight.shape[1], *size_of(sources[0])))


CONVOLVE = fused_operation(
    "convolve",
    "(Tensor[] sources, Tensor?[] affines, float[] slopes, int shift_size, Tensor weight, int[] kernel, int[] stride,"
    " int[] padding, Tensor norm_weight, Tensor norm_bias, float eps) -> (Tensor, Tensor)",
    _empty_convolved,
    3,  # at most: where there are few tiles, their moments are merged by two
    _moved_by_convolving,
    plain=reference_implicit,
    loops=None,
    launch="launch_implicit",
)
CORRELATE = fused_operation(
    "correlate",
    "(Tensor[] sources, Tensor?[] affines, float[] slopes, int shift_size, Tensor grad, int[] kernel, int[] stride,"
    " int[] padding) -> Tensor",
    lambda sources, affines, slopes, shift_size, grad, kernel, stride, padding: grad.new_empty(
        (grad.shape[1], prod(kernel), sum(map(channels_of, sources)))
    ),
    4,  # at most: one for each source, and one that adds their parts
    # Parts of the sum, in float32, are few.
    lambda out, sources, affines, slopes, shift_size, grad, kernel, stride, padding: (
        nbytes(*sources) // stride[0] + nbytes(*affines, grad, out)
    ),
    plain=reference_implicit,
    loops=None,
    launch="launch_implicit",
)
PRODUCT = fused_operation(
    "product",
    "(Tensor[] sources, Tensor?[] affines, float[] slopes, Tensor weight) -> Tensor",
    _empty_product,
    1,
    lambda out, sources, affines, slopes, weight: nbytes(*sources, *affines, weight, out),
    plain=reference_implicit,
    loops=None,
    launch="launch_implicit",
)
