"""Group granularity by torch, on a GPU: fusion convolutions gather the inputs that their groups read.

With group granularity (network.granularity), consecutive output channels form a group; all groups read the same number
of inputs. Such a convolution is a gather of channels and a dense convolution with `groups`, which multiplies active
kernels only. On a CPU the engine's own loops are faster, and take single kernels too.

Transposed convolutions stay dense products: with kernel = stride they do one multiplication per channel and voxel that
they write. Tensor cores do these faster than the memory writes the voxels.
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
from e2enet.network.layers import PlaneConv3d, active_weight
from e2enet.network.seen_mask import SeenMask

MULTIPLE = 8  # each group's input channels are padded to a multiple of this, for tensor cores in half precision


class GroupedNetwork(nn.Module):
    """Runs an E2ENet so that its fusion convolutions multiply only the inputs of their groups of output channels.

    Input, output and gradients equal the network's up to rounding, with one exception: the inactive kernels of these
    convolutions get zero gradients, as DSFF sets them anyway. Masks may change between calls. A layer whose mask has no
    group structure runs as it is.

    Args:
        network: its parameters stay its own.
    """

    def __init__(self, network: E2ENet) -> None:
        super().__init__()
        self.network = network
        self.inputs = {layer: GroupInputs(layer) for layer in grouped_layers(network)}
        self.training = network.training

    def forward(self, x: Tensor) -> Any:
        with self._gathering():
            return self.network(x)

    @contextmanager
    def _gathering(self) -> Iterator[None]:
        for layer, inputs in self.inputs.items():
            layer.forward = inputs.convolve
        try:
            yield
        finally:
            for layer in self.inputs:
                del layer.forward  # that of its class again


def grouped_layers(network: nn.Module) -> list[Any]:
    """Return the fusion convolutions, without transposed ones, whose masks have group granularity."""
    layers: list[Any] = [layer for layer in fusion_layers(network).values() if isinstance(layer, PlaneConv3d)]
    return [layer for layer in layers if layer.group_size > 1]


class GroupInputs:
    """Gathers the inputs that each group of a layer's output channels reads.

    Called with the layer's input (B, C, D, H, W), weight (O, C, depth, height, width) and bias (O). Returns the input
    of the groups (B, groups * inputs, D, H, W), channels-last, the weight (outputs, inputs, depth, height, width), the
    bias (outputs) and the number of groups. `outputs` is O, or more if the last group is smaller: zeros fill it up.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.seen: SeenMask | None = None  # the mask that was read last
        self.channels: Tensor | None = None

    def convolve(self, x: Tensor) -> Tensor:
        """Return the layer's output for an input (B, C, D, H, W)."""
        x, weight, bias, groups = self(x, active_weight(self.layer), self.layer.used_bias)
        out: Tensor = self.layer.convolve(x, weight, bias, groups)
        return out[:, : self.layer.out_channels]

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        self.refresh()
        if self.channels is None:
            return x, weight, bias, 1
        if weight.device.type != "cpu":
            weight = nan_where_changed(weight, self.layer.kernel_mask, self.seen.copy)  # type: ignore[union-attr]
        outputs, kept = self.kernels.shape
        groups, inputs = self.channels.shape
        more = groups * min(self.layer.group_size, outputs) - outputs
        active = weight.flatten(0, 1).index_select(0, self.kernels.flatten()).view(outputs, kept, *weight.shape[2:])
        weight = F.pad(active, (0, 0, 0, 0, 0, 0, 0, inputs - kept, 0, more))
        batch, channels, *size = x.shape
        rows = x.permute(0, 2, 3, 4, 1).reshape(-1, channels)
        gathered: Tensor = _Gather.apply(rows, self.channels.flatten())
        return gathered.view(batch, *size, -1).permute(0, 4, 1, 2, 3), weight, F.pad(bias, (0, more)), groups

    @torch.inference_mode(False)  # training could not use a table made in inference mode
    def refresh(self) -> None:
        """Read the mask, unless it is the one that was read last; see `nan_where_changed` for what a GPU may miss."""
        mask = self.layer.kernel_mask
        if self.seen is not None and self.seen.is_current(mask):
            return
        self.seen = SeenMask(mask)
        channels = shared_inputs(self.layer)
        if channels is None or channels.shape[1] == 0:
            self.channels = None
            return
        outputs = torch.arange(mask.shape[0], device=mask.device)
        self.kernels = outputs[:, None] * mask.shape[1] + channels[outputs // self.layer.group_size]
        self.channels = F.pad(channels, (0, -channels.shape[1] % MULTIPLE))  # the added channels get zero weights


def nan_where_changed(weight: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
    """Return the weight, or NaN if the mask differs from `seen`, without waiting for the device.

    Writing a mask through `.data` does not change its version. The NaN logits are then refused; without them the logits
    would be those of an old mask.
    """
    return weight.masked_fill((mask != seen).any(), torch.nan)


class _Gather(torch.autograd.Function):
    """Columns of (N, C), some of them several times.

    A product with a table of ones sums the gradients, always in the same order. At full resolution, which takes most of
    the time, the table has so few columns that a GPU takes longer to read the gradients than to multiply them.
    """

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
