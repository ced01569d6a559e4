"""What each kind of operation does in a fused pass, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor

from e2enet.common.errors import InputError
from e2enet.network.fused import operations
from e2enet.network.fused.volumes import Reader, Volumes
from e2enet.network.layers import from_planes, to_channels_last, to_planes
from e2enet.network.program import BLOCK, EXPANSION, HEAD, POOLING, Operation

LARGEST_WINDOW = 256  # voxels of a pooled window: the number of its largest one is a byte
Readers = list[list[Reader] | None]  # of each source; None: it needs no gradient


@dataclass
class Pass:
    """One forward pass: its precision, the weights as it used them, and what its backward pass has found.

    weights: by operation, (dim 0, taps, dim 1) of `ACTIVE_WEIGHTS`. weight_gradients: in the same form.
    sums: (B, 2, C) of each block, of which the norm's gradients are made. groups: what a block's masks were in the
    forward pass, for blocks that run by groups.
    """

    dtype: torch.dtype
    weights: Mapping[str, Tensor]
    weight_gradients: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)


class FusedLayer(Protocol):
    """An operation of a program in a fused pass."""

    def forward(self, run: Pass, sources: Sequence[Volumes]) -> Volumes: ...

    def backward(
        self, run: Pass, sources: Sequence[Volumes], output: Volumes, readers: Sequence[Reader], into: Readers
    ) -> None:
        """Add to `into` what the sources' gradients are made of, and to `run` the parameters' gradients.

        The readers are those of the output.
        """


class Block:
    """Concatenation with depth-shift, convolution, instance norm and activation; the norm is left to the readers."""

    def __init__(self, operation: Operation) -> None:
        self.name, self.conv, self.norm = operation.name, operation.conv, operation.norm
        self.shift_size = operation.shift_size
        self.planes = self.conv.kernel_size[0] == 1 and self.conv.padding[0] == 0
        self.depth_stride = self.conv.stride[0] if self.planes else 1  # other kernels stride inside the convolution

    def forward(self, run: Pass, sources: Sequence[Volumes]) -> Volumes:
        x, weight = self._input(run, sources), self._weight(run)
        if self.planes:
            stride, padding = self.conv.stride[1:], self.conv.padding[1:]
            planes = torch.conv2d(to_planes(x), weight, None, stride, padding, groups=self._groups(run))
            values = from_planes(planes, len(x))
        else:
            values = torch.conv3d(x, weight, None, self.conv.stride, self.conv.padding, groups=self._groups(run))
        values = to_channels_last(values[:, : self.conv.out_channels])  # copied once here, or by every reader
        affine = operations.STATISTICS(values, self.norm.weight, self.norm.bias, self.norm.eps)
        return Volumes(values, affine, self.norm.slope)

    def backward(
        self, run: Pass, sources: Sequence[Volumes], output: Volumes, readers: Sequence[Reader], into: Readers
    ) -> None:
        grad = self._output_gradient(run, output, readers)
        x, weight = self._input(run, sources), self._weight(run)
        wanted = [any(one is not None for one in into), True, False]
        if self.planes:
            given, read, sizes = to_planes(self._padded(grad, weight)), to_planes(x), slice(1, None)
        else:
            given, read, sizes = self._padded(grad, weight), x, slice(None)
        ones = (1,) * read[0, 0].ndim
        found, grad_weight, _ = torch.ops.aten.convolution_backward(
            given, read, weight, None, self.conv.stride[sizes], self.conv.padding[sizes], ones, False,
            [0] * len(ones), self._groups(run), wanted,
        )  # fmt: skip
        run.weight_gradients[self.name] = self._whole_weight(run, grad_weight.flatten(2).transpose(1, 2))
        if found is not None:
            grad_x = self._whole_input(run, from_planes(found, len(x)) if self.planes else found)
            hand_on(grad_x, sources, into, self.shift_size, self.depth_stride)

    def _output_gradient(self, run: Pass, output: Volumes, readers: Sequence[Reader]) -> Tensor:
        """Return the gradient of what the convolution wrote."""
        values, affine = output.values, output.affine
        assert affine is not None
        gathered, run.sums[self.name] = operations.GATHER_GRADIENT(
            values, affine, output.slope, *operations.reader_arguments(readers)
        )
        grad: Tensor = operations.NORM_GRADIENT(gathered, values, affine, run.sums[self.name])
        return grad

    def _input(self, run: Pass, sources: Sequence[Volumes]) -> Tensor:
        return prepare(sources, run.dtype, self.shift_size, self.depth_stride)

    def _weight(self, run: Pass) -> Tensor:
        """Return (O, C, height, width), or with the depth for a convolution of volumes, in channels-last memory."""
        return self._with_taps(run.weights[self.name])

    def _with_taps(self, weight: Tensor) -> Tensor:
        outputs, _, inputs = weight.shape
        taps = self.conv.kernel_size[1:] if self.planes else self.conv.kernel_size
        return weight.view(outputs, *taps, inputs).movedim(-1, 1)

    # What a convolution by groups does in another way.

    def _groups(self, run: Pass) -> int:
        return 1

    def _padded(self, grad: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of all outputs of the convolution that ran."""
        return grad

    def _whole_weight(self, run: Pass, grad: Tensor) -> Tensor:
        """Return the gradient of the layer's own weight, (O, taps, C)."""
        return grad

    def _whole_input(self, run: Pass, grad: Tensor) -> Tensor:
        """Return the gradient of all input channels, each once."""
        return grad


class Head:
    """A convolution of 1 x 1 x 1: a product of voxels by weights."""

    def __init__(self, operation: Operation) -> None:
        self.name = operation.name

    def forward(self, run: Pass, sources: Sequence[Volumes]) -> Volumes:
        x = prepare(sources, run.dtype)
        logits = rows(x) @ run.weights[self.name][:, 0].T
        return Volumes(from_rows(logits, x))

    def backward(
        self, run: Pass, sources: Sequence[Volumes], output: Volumes, readers: Sequence[Reader], into: Readers
    ) -> None:
        (reader,) = readers
        grad, x = rows(reader.grad.to(run.dtype)), prepare(sources, run.dtype)
        run.weight_gradients[self.name] = (grad.T @ rows(x)).unsqueeze(1)
        hand_on(from_rows(grad @ run.weights[self.name][:, 0], x), sources, into)


class Expansion:
    """A transposed convolution whose kernel is its stride: one product; its readers find the voxels in it."""

    def __init__(self, operation: Operation) -> None:
        self.name, self.stride = operation.name, operation.conv.stride

    def forward(self, run: Pass, sources: Sequence[Volumes]) -> Volumes:
        x = prepare(sources, run.dtype)
        batch, _, *size = x.shape
        products = rows(x) @ self._weight(run)
        return Volumes(products.view(batch, *size, *self.stride, -1))

    def backward(
        self, run: Pass, sources: Sequence[Volumes], output: Volumes, readers: Sequence[Reader], into: Readers
    ) -> None:
        (reader,) = readers  # the block that it belongs to
        shape = output.values.shape
        grad = operations.BLOCK_GRADIENT(reader.grad, reader.place, shape).view(-1, shape[4:].numel())
        x, weight = prepare(sources, run.dtype), self._weight(run)
        found = rows(x).T @ grad
        run.weight_gradients[self.name] = found.view_as(run.weights[self.name])
        hand_on(from_rows(grad @ weight.T, x), sources, into)

    def _weight(self, run: Pass) -> Tensor:
        return run.weights[self.name].flatten(1)  # (C, taps * outputs)


class Pooling:
    """Max pooling of the activated source. Its readers' gradients go to the source with where the maxima were."""

    def __init__(self, operation: Operation) -> None:
        self.window = operation.module.stride
        if prod(self.window) > LARGEST_WINDOW:
            raise InputError(
                f"{operation.name}: the fused pass pools at most {LARGEST_WINDOW} voxels to one, not "
                f"{' x '.join(map(str, self.window))}; expected engine=dense"
            )

    def forward(self, run: Pass, sources: Sequence[Volumes]) -> Volumes:
        (source,) = sources
        pooled, largest = operations.POOL(source.values, source.affine, source.slope, self.window)
        return Pooled(pooled, largest=largest)

    def backward(
        self, run: Pass, sources: Sequence[Volumes], output: Volumes, readers: Sequence[Reader], into: Readers
    ) -> None:
        assert isinstance(output, Pooled)
        if into[0] is not None:
            into[0].extend(replace(reader, largest=output.largest, window=self.window) for reader in readers)


@dataclass(frozen=True)
class Pooled(Volumes):
    """A pooled volume, and the number of each window's largest voxel, uint8 (B, C, D, H, W)."""

    largest: Tensor | None = None


LAYERS: dict[str, Callable[[Operation], FusedLayer]] = {
    BLOCK: Block,
    EXPANSION: Expansion,
    POOLING: Pooling,
    HEAD: Head,
}


def prepare(
    sources: Sequence[Volumes],
    dtype: torch.dtype,
    shift_size: int = 1,
    depth_stride: int = 1,
    columns: Tensor | None = None,
) -> Tensor:
    """Return what a convolution reads, (B, C, D / depth_stride, H, W), channels-last.

    columns: which of the sources' channels, (C,) int64, in any order and some of them several times; None: all.
    """
    found: Tensor = operations.PREPARE(*arguments_of(sources), shift_size, depth_stride, dtype, columns)
    return found


def arguments_of(sources: Sequence[Volumes]) -> tuple[list[Tensor], list[Tensor | None], list[float]]:
    """Return `sources`, `affines` and `slopes`, as the operations take them."""
    return (
        [source.values for source in sources],
        [source.affine for source in sources],
        [source.slope for source in sources],
    )


def rows(x: Tensor) -> Tensor:
    """Return (B, C, D, H, W) as (voxels, C): a view if it is channels-last."""
    return x.permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1])


def from_rows(values: Tensor, like: Tensor) -> Tensor:
    """Return (voxels, C) as (B, C, D, H, W), with batch and size of `like`."""
    batch, _, *size = like.shape
    return values.view(batch, *size, -1).permute(0, 4, 1, 2, 3)


def hand_on(
    grad: Tensor, sources: Sequence[Volumes], into: Readers, shift_size: int = 1, depth_stride: int = 1
) -> None:
    """Give each source its part of a prepared input's gradient."""
    start = 0
    for source, readers in zip(sources, into, strict=True):
        if readers is not None:
            readers.append(Reader(grad, start, shift_size, depth_stride))
        start += source.channels
