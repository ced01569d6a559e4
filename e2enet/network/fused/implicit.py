"""Layers whose convolutions prepare what they read: nothing writes their input, and nothing reads their output again.

Convolutions of volumes, such as (3, 3, 3), run as `layers` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from e2enet.network.fused import operations_implicit as operations
from e2enet.network.fused.layers import Block, Expansion, FusedLayer, Head, Pass, arguments_of
from e2enet.network.fused.volumes import Volumes
from e2enet.network.program import BLOCK, EXPANSION, HEAD, Operation


class ImplicitBlock(Block):
    """A block whose convolution normalises, activates, shifts and joins while it reads, and takes its statistics."""

    def forward(self, run: Pass, sources: Sequence[Volumes]) -> Volumes:
        if not self.planes:
            return super().forward(run, sources)
        conv, norm = self.conv, self.norm
        values, affine = operations.CONVOLVE(
            *arguments_of(sources), self.shift_size, run.weights[self.name], conv.kernel_size[1:], conv.stride,
            conv.padding[1:], norm.weight, norm.bias, norm.eps,
        )  # fmt: skip
        return Volumes(values, affine, norm.slope)


class ImplicitHead(Head):
    """A head that normalises and activates while it reads."""

    def forward(self, run: Pass, sources: Sequence[Volumes]) -> Volumes:
        return Volumes(product(sources, run.weights[self.name][:, 0].T))


class ImplicitExpansion(Expansion):
    """An expansion that normalises and activates while it reads."""

    def forward(self, run: Pass, sources: Sequence[Volumes]) -> Volumes:
        products = product(sources, self._weight(run)).movedim(1, -1)
        return Volumes(products.unflatten(-1, (*self.stride, -1)))


IMPLICIT_LAYERS: dict[str, Callable[[Operation], FusedLayer]] = {
    BLOCK: ImplicitBlock,
    EXPANSION: ImplicitExpansion,
    HEAD: ImplicitHead,
}


def product(sources: Sequence[Volumes], weight: Tensor) -> Tensor:
    """Return the voxels of the joined sources times a weight (C, O): (B, O, D, H, W), channels-last."""
    found: Tensor = operations.PRODUCT(*arguments_of(sources), weight)
    return found
