"""Groups of output channels by torch, on a GPU: each fusion layer gathers what its groups read and convolves by groups.

With group granularity (network.granularity), output channels that follow each other share their input channels, the
same number in every group. Such a layer is a gather of channels and a dense convolution with `groups`, which multiplies
active kernels alone. On a CPU the engine's own loops are faster, and take single kernels too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from e2enet.network.dsff import fusion_layers
from e2enet.network.e2enet import E2ENet
from e2enet.network.granularity import shared_inputs
from e2enet.network.layers import PlaneConv3d

MULTIPLE = 8  # of input channels in each group: tensor cores take half precision in such numbers


class GroupedNetwork(nn.Module):
    """Runs an E2ENet so that its fusion convolutions multiply only what their groups of output channels read.

    Input, output and gradients are the network's but for rounding, with one exception: weights of inactive kernels get
    zero, which the DSFF callback makes of theirs anyway. Masks may change between calls. A layer whose mask is no table
    of groups runs as it is.

    Args:
        network: with parameters that stay its own.
    """

    def __init__(self, network: E2ENet) -> None:
        super().__init__()
        self.network = network
        self.inputs = {layer: GroupInputs(layer) for layer in grouped_layers(network)}

    def forward(self, x: Tensor) -> Any:
        with self._gathering():
            return self.network(x)

    @contextmanager
    def _gathering(self) -> Iterator[None]:
        for layer, inputs in self.inputs.items():
            layer.gather = inputs
        try:
            yield
        finally:
            for layer in self.inputs:
                layer.gather = None


def grouped_layers(network: nn.Module) -> list[Any]:
    """The fusion convolutions whose output channels divide into groups of the mask's granularity."""
    layers: list[Any] = [layer for layer in fusion_layers(network).values() if isinstance(layer, PlaneConv3d)]
    return [layer for layer in layers if layer.group_size > 1 and layer.out_channels % layer.group_size == 0]


class GroupInputs:
    """Gathers what each group of a layer's output channels reads.

    Called with the layer's input (B, C, D, H, W) and weight (O, C, depth, height, width); gives the input of groups
    (B, groups * inputs, D, H, W), channels-last, the weight (O, inputs, depth, height, width) and the number of groups.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.seen: tuple[Tensor, int] | None = None
        self.channels: Tensor | None = None

    def __call__(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, int]:
        self._refresh()
        if self.channels is None:
            return x, weight, 1
        outputs, kept = self.kernels.shape
        active = weight.flatten(0, 1).index_select(0, self.kernels.flatten()).view(outputs, kept, *weight.shape[2:])
        padded = F.pad(active, (0, 0, 0, 0, 0, 0, 0, self.channels.shape[1] - kept))
        batch, channels, *size = x.shape
        rows = x.permute(0, 2, 3, 4, 1).reshape(-1, channels)
        gathered: Tensor = _Gather.apply(rows, self.channels.flatten())
        return gathered.view(batch, *size, -1).permute(0, 4, 1, 2, 3), padded, len(self.channels)

    def _refresh(self) -> None:
        """Read the mask, unless it is the one that was read last: asking a GPU for its numbers waits for it."""
        mask = self.layer.kernel_mask
        if self.seen is not None and self.seen[0] is mask and self.seen[1] == mask._version:
            return
        self.seen = mask, mask._version
        self.channels = shared_inputs(self.layer)
        if self.channels is None:
            return
        first = torch.arange(mask.shape[0], device=mask.device)[:, None] * mask.shape[1]
        self.kernels = first + self.channels.repeat_interleave(self.layer.group_size, dim=0)
        self.channels = F.pad(self.channels, (0, -self.channels.shape[1] % MULTIPLE))  # weights of these are zero


class _Gather(torch.autograd.Function):
    """Columns of (N, C), some of them several times. Gradients are added up by a product: in one order, in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(columns)
        ctx.count = rows.shape[1]
        return rows.index_select(1, columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (columns,) = ctx.saved_tensors
        chosen = F.one_hot(columns, ctx.count).to(grad.dtype)
        return grad @ chosen, None
