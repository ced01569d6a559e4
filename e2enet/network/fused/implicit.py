"""Layers whose convolutions prepare what they read: nothing writes their input, forward or backward.

Nothing reads their output again for its statistics. cuDNN computes the gradients of inputs. Convolutions of volumes,
such as (3, 3, 3), run as `layers` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from e2enet.network.fused import operations
from e2enet.network.fused import operations_implicit as implicit
from e2enet.network.fused.layers import (
    Block,
    Expansion,
    FusedLayer,
    Head,
    Pass,
    Readers,
    arguments_of,
    from_rows,
    hand_on,
    rows,
)
from e2enet.network.fused.volumes import Reader, Volumes, size_of
from e2enet.network.layers import from_planes, to_channels_last, to_planes
from e2enet.network.program import BLOCK, EXPANSION, HEAD, Operation


class ImplicitBlock(Block):
    """A block whose convolution normalises, activates, shifts and joins while it reads, and takes its statistics."""

    def forward(self, run: Pass, sources: Sequence[Volumes]) -> Volumes:
        if not self.planes:
            return super().forward(run, sources)
        conv, norm = self.conv, self.norm
        values, affine = implicit.CONVOLVE(
            *arguments_of(sources), self.shift_size, run.weights[self.name], conv.kernel_size[1:], conv.stride,
            conv.padding[1:], norm.weight, norm.bias, norm.eps,
        )  # fmt: skip
        return Volumes(values, affine, norm.slope)

    def backward(
        self, run: Pass, sources: Sequence[Volumes], output: Volumes, readers: Sequence[Reader], into: Readers
    ) -> None:
        if not self.planes:
            super().backward(run, sources, output, readers, into)
            return
        kernel, stride, padding = self.conv.kernel_size[1:], self.conv.stride, self.conv.padding[1:]
        grad = self._output_gradient(run, output, readers)
        run.weight_gradients[self.name] = correlate(sources, grad, kernel, stride, padding, self.shift_size)
        if any(one is not None for one in into):
            batch, _, depth, *_ = grad.shape
            shape = batch * depth, self.conv.in_channels, *size_of(sources[0].values)[1:]
            nowhere = grad.new_empty(()).expand(shape)  # its values are not read
            found, *_ = torch.ops.aten.convolution_backward(
                to_planes(grad), nowhere, self._weight(run), None, stride[1:], padding, (1, 1), False, [0, 0], 1,
                [True, False, False],
            )  # fmt: skip
            hand_on(from_planes(found, batch), sources, into, self.shift_size, self.depth_stride)


class ImplicitHead(Head):
    """A head that normalises and activates while it reads."""

    def forward(self, run: Pass, sources: Sequence[Volumes]) -> Volumes:
        return Volumes(product(sources, run.weights[self.name][:, 0].T))

    def backward(
        self, run: Pass, sources: Sequence[Volumes], output: Volumes, readers: Sequence[Reader], into: Readers
    ) -> None:
        (reader,) = readers
        grad = to_channels_last(reader.grad.to(run.dtype))
        run.weight_gradients[self.name] = correlate(sources, grad)
        hand_on(from_rows(rows(grad) @ run.weights[self.name][:, 0], grad), sources, into)


class ImplicitExpansion(Expansion):
    """An expansion that normalises and activates while it reads."""

    def forward(self, run: Pass, sources: Sequence[Volumes]) -> Volumes:
        products = product(sources, self._weight(run)).movedim(1, -1)
        return Volumes(products.unflatten(-1, (*self.stride, -1)))

    def backward(
        self, run: Pass, sources: Sequence[Volumes], output: Volumes, readers: Sequence[Reader], into: Readers
    ) -> None:
        (reader,) = readers  # the block that it belongs to
        products = operations.BLOCK_GRADIENT(reader.grad, reader.place, output.values.shape).flatten(4)
        grad = products.movedim(-1, 1)
        found = correlate(sources, grad)  # (taps * outputs, 1, C)
        run.weight_gradients[self.name] = found[:, 0].T.unflatten(1, run.weights[self.name].shape[1:])
        hand_on(from_rows(rows(grad) @ self._weight(run).T, grad), sources, into)


IMPLICIT_LAYERS: dict[str, Callable[[Operation], FusedLayer]] = {
    BLOCK: ImplicitBlock,
    EXPANSION: ImplicitExpansion,
    HEAD: ImplicitHead,
}


def product(sources: Sequence[Volumes], weight: Tensor) -> Tensor:
    """Return the voxels of the joined sources times a weight (C, O): (B, O, D, H, W), channels-last."""
    found: Tensor = implicit.PRODUCT(*arguments_of(sources), weight)
    return found


def correlate(
    sources: Sequence[Volumes],
    grad: Tensor,
    kernel: Sequence[int] = (1, 1),
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = (0, 0),
    shift_size: int = 1,
) -> Tensor:
    """Return the gradient of a weight, (O, taps, C), from that of what was written, (B, O, D, H, W)."""
    found: Tensor = implicit.CORRELATE(*arguments_of(sources), shift_size, grad, kernel, stride, padding)
    return found
