"""E2ENet in operations that every exporter knows: the same function, without compiled loops and masks.

In training and prediction the layers are written for the memory they move. Exported graphs should be plain: one
convolution per layer, whose weights hold zeros for inactive kernels, so that any runtime reads and optimises them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from e2enet.data.planning.plan import Plan
from e2enet.network.dsff import apply_masks, fusion_layers
from e2enet.network.layers import PlaneConv3d, StrideUp3d
from e2enet.network.norm import InstanceNormAct
from e2enet.network.program import BLOCK, EXPANSION, HEAD, KINDS, POOLING, entry

MAX_BATCH = 2**31 - 1  # torch 2.6 refuses a batch without an upper bound


class PlainNormAct(nn.Module):
    """`InstanceNormAct` of (B, C, D, H, W), float32, in plain operations.

    Means are taken plane by plane, then along depth. Runtimes sum in float32, one voxel after another: of a volume of
    32 x 96 x 96 a sum in one go, as that of ONNX's own InstanceNormalization, left errors of 2e-4 in the logits.
    """

    def __init__(self, norm: InstanceNormAct) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.eps, self.slope = norm.eps, norm.slope

    def forward(self, x: Tensor, _: Tensor | None = None) -> Tensor:
        centred = x - _mean(x)
        scale = self.weight.view(-1, 1, 1, 1) * torch.rsqrt(_mean(centred * centred) + self.eps)
        return F.leaky_relu(centred * scale + self.bias.view(-1, 1, 1, 1), self.slope)


def plain_network(network: nn.Module) -> nn.Module:
    """Return a copy of a network on the CPU, in eval mode, whose layers are torch's own with masks in the weights.

    Layers that are not of this project stay as they are.

    Raises:
        InputError: the network has an operation that is not in `PLAIN`.
    """
    plain = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    apply_masks(plain)
    for layer in fusion_layers(plain).values():
        del layer._buffers["kernel_mask"]
    _replace_layers(plain)
    return plain


def size_steps(plan: Plan) -> tuple[int, int, int]:
    """Return what the sizes (D, H, W) of an input are multiples of: the product of the strides."""
    depth, height, width = (math.prod(stride[axis] for stride in plan.strides) for axis in range(3))
    return depth, height, width


def example_input(plan: Plan, channels: int) -> Tensor:
    """Return an input (2, channels, D, H, W) to trace a network with: two steps along each axis that may vary.

    torch.export treats sizes 0 and 1 as constants, so the example has neither, and as many samples.
    """
    return torch.zeros(2, channels, *(2 * step if free else step for step, free in _axes(plan)))


def dynamic_dims(plan: Plan) -> dict[int, Any]:
    """Return the axes of an input that may vary, as torch.export takes them: the batch and every size in steps.

    At least two steps are asked for, since torch.export would make a case of its own of a deepest level with an edge of
    one voxel. An axis that is a single step long in the plan's patch keeps this length.
    """
    dims: dict[int, Any] = {0: Dim("batch", min=1, max=MAX_BATCH)}
    for axis, (name, (step, free)) in enumerate(zip(("depth", "height", "width"), _axes(plan), strict=True), 2):
        if free:
            steps = Dim(f"{name}_steps" if step > 1 else name, min=2)
            dims[axis] = step * steps if step > 1 else steps
    return dims


def _axes(plan: Plan) -> Sequence[tuple[int, bool]]:
    """Return (step, whether the size may vary) of each axis."""
    return [(step, edge > step) for step, edge in zip(size_steps(plan), plan.patch_size, strict=True)]


def _replace_layers(module: nn.Module, prefix: str = "") -> None:
    for name, child in module.named_children():
        kind = KINDS.get(type(child))
        if kind is not None:
            setattr(module, name, entry("the export", PLAIN, kind, f"{prefix}{name}", "an entry in PLAIN")(child))
        elif type(child) in PARTS:
            setattr(module, name, PARTS[type(child)](child))
        else:
            _replace_layers(child, f"{prefix}{name}.")


def _plain_block(block: nn.Module) -> nn.Module:
    _replace_layers(block)
    return block


def _plain_convolution(layer: PlaneConv3d | StrideUp3d) -> nn.Module:
    kind = nn.ConvTranspose3d if isinstance(layer, StrideUp3d) else nn.Conv3d
    with torch.device("meta"):  # the weights follow
        options: Any = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding")}
        plain = kind(layer.in_channels, layer.out_channels, **options, bias=layer.bias is not None)
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


def _as_it_is(layer: nn.Module) -> nn.Module:
    return layer


# What each kind of operation becomes, and what the layers become that blocks are made of.
PLAIN: dict[str, Callable[[Any], nn.Module]] = {
    BLOCK: _plain_block,
    EXPANSION: _plain_convolution,
    POOLING: _as_it_is,
    HEAD: _as_it_is,
}
PARTS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    PlaneConv3d: _plain_convolution,
    InstanceNormAct: PlainNormAct,
}


def _mean(x: Tensor) -> Tensor:
    """Return the mean (B, C, 1, 1, 1) over a volume, by planes."""
    return x.mean((3, 4), keepdim=True).mean(2, keepdim=True)
