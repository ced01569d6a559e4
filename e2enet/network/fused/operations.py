"""The operations around convolutions, registered with torch: as loops for CPUs, by Triton on CUDA, else in plain torch.

Each states how many kernels it launches on CUDA and how many bytes they move; `python -m benchmarks.gpu --parts count`
adds these up. None has a gradient of its own: a fused pass goes backward by further operations.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from e2enet.network.fused import reference
from e2enet.network.fused.volumes import PLACE, channels_of, size_of
from e2enet.network.operations import ANY_DEVICE, LIBRARY, empty_channels_last, register


@dataclass(frozen=True)
class Traffic:
    """What an operation costs on a GPU: kernels launched, and bytes that they read and write together.

    `moved` takes the operation's arguments and what it returned.
    """

    kernels: int
    moved: Callable[..., int]


TRAFFIC: dict[Any, Traffic] = {}  # by operation
_LAUNCHERS: dict[Any, tuple[str, str]] = {}  # module and name


def fused_operation(
    name: str,
    schema: str,
    fake: Callable[..., Any],
    kernels: int,
    moved: Callable[..., int],
    *,
    plain: Any = reference,
    loops: str | None = "cpu",
    launch: str = "launch",
) -> Any:
    """Register and return the operation `fused_<name>`, a function <name> of three modules.

    plain: for any device. loops: for CPUs, if there are any. launch: for CUDA.
    """
    operation = register(f"fused_{name}{schema}", getattr(plain, name), fake, device=ANY_DEVICE)
    if loops is not None:
        LIBRARY.impl(f"fused_{name}", _imported(loops, name), "CPU")
    LIBRARY.impl(f"fused_{name}", _imported(launch, name), "CUDA")
    TRAFFIC[operation.default] = Traffic(kernels, moved)
    _LAUNCHERS[operation.default] = launch, name
    return operation


def launcher(operation: Any) -> Callable[..., Any]:
    """Return what starts the kernels of one of TRAFFIC on CUDA."""
    return _imported(*_LAUNCHERS[operation])


def _imported(module: str, name: str) -> Callable[..., Any]:
    """Return a function of this package, imported at its first call: it needs triton or numba."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"e2enet.network.fused.{module}"), name)(*arguments)

    found: Callable[..., Any] = torch.compiler.disable(call)
    return found


def nbytes(*tensors: Tensor | None) -> int:
    """Return the bytes of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)


def _part(grad: Tensor, channels: int) -> int:
    """Return the bytes of some channels of (B, C, D, H, W)."""
    return nbytes(grad) // grad.shape[1] * channels


def _empty_prepared(
    sources: Sequence[Tensor],
    affines: Sequence[Tensor | None],
    slopes: Sequence[float],
    shift_size: int,
    depth_stride: int,
    dtype: torch.dtype,
    columns: Tensor | None,
) -> Tensor:
    first = sources[0]
    channels = sum(channels_of(source) for source in sources) if columns is None else len(columns)
    depth, height, width = size_of(first)
    shape = first.shape[0], channels, -(-depth // depth_stride), height, width
    return empty_channels_last(first.new_empty(0, dtype=dtype), shape)


def empty_table(values: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return uninitialised memory for the table of `reference.statistics`."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    return values.new_empty((values.shape[0], 4, values.shape[1]), dtype=dtype)


def _empty_pooled(values: Tensor, affine: Tensor | None, slope: float, window: Sequence[int]) -> tuple[Tensor, Tensor]:
    size = [edge // step for edge, step in zip(size_of(values), window, strict=True)]
    pooled = empty_channels_last(values, (values.shape[0], channels_of(values), *size))
    return pooled, torch.empty_like(pooled, dtype=torch.uint8)


def _empty_gathered(
    values: Tensor,
    affine: Tensor,
    slope: float,
    grads: Sequence[Tensor],
    largest: Sequence[Tensor | None],
    places: Sequence[int],
) -> tuple[Tensor, Tensor]:
    sums = affine.new_empty((affine.shape[0], 2, affine.shape[2]))
    return empty_channels_last(values, values.shape), sums


def _moved_by_gathering(
    out: Any, values: Tensor, affine: Tensor, slope: float, grads: Any, largest: Any, places: Sequence[int]
) -> int:
    read = sum(_part(grad, values.shape[1]) for grad in grads) + nbytes(*largest)
    return read + nbytes(values, affine, *out)


PREPARE = fused_operation(
    "prepare",
    "(Tensor[] sources, Tensor?[] affines, float[] slopes, int shift_size, int depth_stride, ScalarType dtype,"
    " Tensor? columns) -> Tensor",
    _empty_prepared,
    1,
    # With columns, whole sources too: memory is read in sectors of 16 channels, of which some are nearly always wanted.
    lambda out, sources, affines, slopes, shift_size, depth_stride, dtype, columns: (
        nbytes(*sources) // depth_stride + nbytes(*affines, out, columns)
    ),
)
STATISTICS = fused_operation(
    "statistics",
    "(Tensor values, Tensor weight, Tensor bias, float eps) -> Tensor",
    empty_table,
    2,
    lambda out, values, weight, bias, eps: nbytes(values, weight, bias, out),
)
POOL = fused_operation(
    "pool",
    "(Tensor values, Tensor? affine, float slope, int[] window) -> (Tensor, Tensor)",
    _empty_pooled,
    1,
    lambda out, values, affine, slope, window: nbytes(values, affine, *out),
)
GATHER_GRADIENT = fused_operation(
    "gather_gradient",
    "(Tensor values, Tensor affine, float slope, Tensor[] grads, Tensor?[] largest, int[] places) -> (Tensor, Tensor)",
    _empty_gathered,
    2,
    _moved_by_gathering,
)
NORM_GRADIENT = fused_operation(
    "norm_gradient",
    "(Tensor grad, Tensor values, Tensor affine, Tensor sums) -> Tensor",
    lambda grad, values, affine, sums: empty_channels_last(values, values.shape),
    1,
    lambda out, grad, values, affine, sums: nbytes(grad, values, affine, sums, out),
)
BLOCK_GRADIENT = fused_operation(
    "block_gradient",
    "(Tensor grad, int[] place, int[] products) -> Tensor",
    lambda grad, place, products: grad.new_empty(products),
    1,
    lambda out, grad, place, products: _part(grad, products[-1]) + nbytes(out),
)
ACTIVE_WEIGHTS = fused_operation(
    "active_weights",
    "(Tensor[] weights, Tensor?[] masks, ScalarType dtype) -> Tensor[]",
    lambda weights, masks, dtype: [
        weight.new_empty((weight.shape[0], weight[0, 0].numel(), weight.shape[1]), dtype=dtype) for weight in weights
    ],
    1,
    lambda out, weights, masks, dtype: nbytes(*weights, *masks, *out),
)
WEIGHT_GRADIENTS = fused_operation(
    "weight_gradients",
    "(Tensor[] grads, Tensor[] weights) -> Tensor[]",
    lambda grads, weights: [weight.new_empty(weight.shape) for weight in weights],
    1,
    lambda out, grads, weights: nbytes(*grads, *out),
)


def reader_arguments(readers: Sequence[Any]) -> tuple[list[Tensor], list[Tensor | None], list[int]]:
    """Return `grads`, `largest` and `places` of `Reader`s, as GATHER_GRADIENT takes them."""
    places = [number for reader in readers for number in reader.place]
    assert len(places) == PLACE * len(readers)
    return [reader.grad for reader in readers], [reader.largest for reader in readers], places
