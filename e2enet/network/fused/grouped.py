"""Blocks whose masks have group granularity, with active kernels only: chosen channels, then a grouped convolution.

With group granularity (`network.granularity`), consecutive output channels form a group; all groups read the same
number of inputs. `prepare` writes the channels that each group reads, one group after the other, in the same pass that
applies norm, activation and shift. A dense convolution with `groups` then multiplies active kernels only.

Transposed convolutions stay dense products: with kernel = stride they do one multiplication per channel and voxel that
they write. Tensor cores do these faster than the memory writes the voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2enet.network.dsff import fusion_layers
from e2enet.network.fused.layers import Block, Pass, from_rows, prepare, rows
from e2enet.network.fused.volumes import Volumes
from e2enet.network.granularity import shared_inputs
from e2enet.network.layers import PlaneConv3d, to_channels_last
from e2enet.network.program import Operation
from e2enet.network.seen_mask import SeenMask

MULTIPLE = 8  # each group's input channels are padded to a multiple of this, for tensor cores in half precision


def grouped_layers(network: nn.Module) -> list[Any]:
    """Return the fusion convolutions, without transposed ones, whose masks have group granularity."""
    layers: list[Any] = [layer for layer in fusion_layers(network).values() if isinstance(layer, PlaneConv3d)]
    return [layer for layer in layers if layer.group_size > 1]


class GroupInputs:
    """The input channels that each group of a layer's output channels reads, kept until the mask changes.

    channels: of each group, padded to a multiple of `MULTIPLE`, (groups, inputs) int64. kernels: those of each output,
    (outputs, kept). Both are None if the mask has no group structure, or no active kernel.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.seen: SeenMask | None = None  # the mask that was read last
        self.channels: Tensor | None = None
        self.kernels: Tensor | None = None

    @torch.inference_mode(False)  # training could not use a table made in inference mode
    def refresh(self) -> SeenMask:
        """Read the mask, unless it is the one that was read last; see `nan_where_changed` for what a GPU may miss."""
        mask = self.layer.kernel_mask
        if self.seen is not None and self.seen.is_current(mask):
            return self.seen
        self.seen = SeenMask(mask)
        self.channels = self.kernels = None
        channels = shared_inputs(self.layer)
        if channels is not None and channels.shape[1] > 0:
            outputs = torch.arange(mask.shape[0], device=mask.device)
            self.kernels = channels[outputs // self.layer.group_size]
            self.channels = F.pad(channels, (0, -channels.shape[1] % MULTIPLE))  # the added channels get zero weights
        return self.seen


def nan_where_changed(weight: Tensor, mask: Tensor, seen: Tensor) -> Tensor:
    """Return the weight, or NaN if the mask differs from `seen`, without waiting for the device.

    Writing a mask through `.data` does not change its version. The NaN logits are then refused; without them the logits
    would be those of an old mask.
    """
    return weight.masked_fill((mask != seen).any(), torch.nan)


class Table(NamedTuple):
    """What groups read in one pass.

    channels: input channels that each group reads, padded (groups, inputs). kernels: those of each output, (outputs,
    kept). Both are None if the mask has no group structure, or no active kernel. factor: of the weights, 1, or NaN if
    they are those of an old mask (`nan_where_changed`).
    """

    channels: Tensor | None
    kernels: Tensor | None
    factor: Tensor


class GroupedBlock(Block):
    """A block that multiplies only the inputs of its groups of output channels.

    Inactive kernels get zero gradients, as DSFF sets them anyway. With a mask that has no group structure it runs as
    every block does.
    """

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        self.inputs = GroupInputs(self.conv)

    def _table(self, run: Pass) -> Table:
        """Return what the groups read, as it was in the forward pass."""
        if self.name not in run.groups:
            inputs = self.inputs
            seen, one = inputs.refresh(), torch.ones((), dtype=run.dtype, device=self.conv.weight.device)
            factor = nan_where_changed(one, self.conv.kernel_mask, seen.copy)
            run.groups[self.name] = Table(inputs.channels, inputs.kernels, factor)
        table: Table = run.groups[self.name]
        return table

    def _input(self, run: Pass, sources: Sequence[Volumes]) -> Tensor:
        channels = self._table(run).channels
        columns = None if channels is None else channels.flatten()
        return prepare(sources, run.dtype, self.shift_size, self.depth_stride, columns)

    def _weight(self, run: Pass) -> Tensor:
        channels, kernels, factor = self._table(run)
        if channels is None or kernels is None:
            return super()._weight(run)
        whole, (outputs, kept), (groups, inputs) = run.weights[self.name], kernels.shape, channels.shape
        active = whole.gather(2, _every_tap(kernels, whole.shape[1])) * factor
        more = groups * min(self.conv.group_size, outputs) - outputs
        return self._with_taps(F.pad(active, (0, inputs - kept, 0, 0, 0, more)))

    def _groups(self, run: Pass) -> int:
        channels = self._table(run).channels
        return 1 if channels is None else len(channels)

    def _padded(self, grad: Tensor, weight: Tensor) -> Tensor:
        more = len(weight) - grad.shape[1]
        return to_channels_last(F.pad(grad, (0, 0, 0, 0, 0, 0, 0, more))) if more else grad

    def _whole_weight(self, run: Pass, grad: Tensor) -> Tensor:
        kernels = self._table(run).kernels
        if kernels is None:
            return grad
        outputs, kept = kernels.shape
        whole = grad.new_zeros((outputs, grad.shape[1], self.conv.in_channels))
        return whole.scatter_(2, _every_tap(kernels, grad.shape[1]), grad[:outputs, :, :kept])

    def _whole_input(self, run: Pass, grad: Tensor) -> Tensor:
        """Sum the gradients of channels that several groups read, by a product, always in the same order."""
        channels = self._table(run).channels
        if channels is None:
            return grad
        chosen = F.one_hot(channels.flatten(), self.conv.in_channels).to(grad.dtype)
        return from_rows(rows(grad) @ chosen, grad)


def _every_tap(kernels: Tensor, taps: int) -> Tensor:
    """Return (outputs, kept) as (outputs, taps, kept)."""
    return kernels.unsqueeze(1).expand(-1, taps, -1)
