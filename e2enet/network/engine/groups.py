"""Groups of output channels by torch, on a GPU: fusion convolutions gather what their groups read.

With group granularity (network.granularity), consecutive output channels form a group; all groups read the same number
of inputs. Such a convolution is a gather of channels and a dense convolution with `groups`, which
multiplies active kernels alone. On a CPU the engine's own loops are faster, and take single kernels too.

Transposed convolutions stay dense products: with kernel = stride they do one multiplication per channel and voxel
that they write, which tensor cores do in less time than the memory takes to write it.
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

MULTIPLE = 8  # of input channels in each group: tensor cores take half precision in such numbers


class GroupedNetwork(nn.Module):
    """Runs an E2ENet so that its fusion convolutions multiply only what their groups of output channels read.

    Input, output and gradients are the network's but for rounding, with one exception: these convolutions' weights of
    inactive kernels get zero, which the DSFF callback makes of theirs anyway. Masks may change between calls. A layer
    whose mask is no table of groups runs as it is.

    Args:
        network: with parameters that stay its own.
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
    """The fusion convolutions, but for transposed ones, whose masks are of groups of output channels."""
    layers: list[Any] = [layer for layer in fusion_layers(network).values() if isinstance(layer, PlaneConv3d)]
    return [layer for layer in layers if layer.group_size > 1]


class GroupInputs:
    """Gathers what each group of a layer's output channels reads.

    Called with the layer's input (B, C, D, H, W), weight (O, C, depth, height, width) and bias (O); gives the input of
    groups (B, groups * inputs, D, H, W), channels-last, the weight (outputs, inputs, depth, height, width), the bias
    (outputs) and the number of groups. `outputs` is O, or more where the last group is smaller: zeros fill it up.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.seen: tuple[Tensor, int | None, Tensor] | None = None  # the mask that was read last, its version, a copy
        self.channels: Tensor | None = None

    def convolve(self, x: Tensor) -> Tensor:
        """What the layer makes of an input (B, C, D, H, W)."""
        x, weight, bias, groups = self(x, active_weight(self.layer), self.layer.used_bias)
        out: Tensor = self.layer.convolve(x, weight, bias, groups)
        return out[:, : self.layer.out_channels]

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        self._refresh()
        if self.channels is None:
            return x, weight, bias, 1
        if weight.device.type != "cpu":
            weight = nan_where_changed(weight, self.layer.kernel_mask, self.seen[2])  # type: ignore[index]
        outputs, kept = self.kernels.shape
        groups, inputs = self.channels.shape
        more = groups * min(self.layer.group_size, outputs) - outputs
        active = weight.flatten(0, 1).index_select(0, self.kernels.flatten()).view(outputs, kept, *weight.shape[2:])
        weight = F.pad(active, (0, 0, 0, 0, 0, 0, 0, inputs - kept, 0, more))
        batch, channels, *size = x.shape
        rows = x.permute(0, 2, 3, 4, 1).reshape(-1, channels)
        gathered: Tensor = _Gather.apply(rows, self.channels.flatten())
        return gathered.view(batch, *size, -1).permute(0, 4, 1, 2, 3), weight, F.pad(bias, (0, more)), groups

    @torch.inference_mode(False)  # a table that was made in it could not be used in training
    def _refresh(self) -> None:
        """Read the mask, unless it is the one that was read last.

        On a CPU its numbers tell. Asking a GPU for them waits for it: there the version tells, see `nan_where_changed`.
        """
        mask = self.layer.kernel_mask
        version = None if mask.is_inference() else mask._version
        if self.seen is not None:
            before, then, copied = self.seen
            by_version = before is mask and version is not None and then == version
            if torch.equal(copied, mask) if mask.device.type == "cpu" else by_version:
                return
        self.seen = mask, version, mask.clone()
        channels = shared_inputs(self.layer)
        if channels is None or channels.shape[1] == 0:
            self.channels = None
            return
        outputs = torch.arange(mask.shape[0], device=mask.device)
        self.kernels = outputs[:, None] * mask.shape[1] + channels[outputs // self.layer.group_size]
        self.channels = F.pad(channels, (0, -channels.shape[1] % MULTIPLE))  # weights of these are zero


def nan_where_changed(weight: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
    """The weight, or NaN where the mask is not the one that was seen, which nothing waits for.

    What is written through `.data` has no version. It gives logits that are refused, not those of another mask.
    """
    return weight.masked_fill((mask != seen).any(), torch.nan)


class _Gather(torch.autograd.Function):
    """Columns of (N, C), some of them several times.

    Gradients are added up by a product with a table of ones, in an order that is always the same. At full resolution,
    where the time goes, it has so few columns that a GPU needs longer for reading it than for multiplying.
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
