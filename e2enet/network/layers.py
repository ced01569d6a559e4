"""The layers of E2ENet, written for channels-last memory: the same results as torch's, fewer bytes moved.

In channels-last order a volume (B, C, D, H, W) lies in memory as (B, D, H, W, C). Two things follow:
a (1, 3, 3) convolution is a 2D convolution of B * D images, and a transposed convolution whose kernel equals its
stride is a matrix product of voxels by weights.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from e2enet.network.operations import ANY_DEVICE, below_autograd, plain_gradients, plain_operations, register

Triple = tuple[int, int, int]


class PlaneConv3d(nn.Conv3d):
    """`nn.Conv3d`, run as a 2D convolution of slices if its kernel has depth 1 and no depth padding.

    With `normalised=True` an instance norm follows and subtracts the bias again: the bias's gradient is zero. The norm
    then supplies this zero (`InstanceNormAct`). Summing a volume for it would give rounding errors, which AdamW would
    turn into a random walk. Kernels that a mask (network.dsff) switches off count as zeros, see `active_weight`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        stride: Triple = (1, 1, 1),
        padding: Triple = (0, 0, 0),
        *,
        normalised: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.normalised = normalised

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = active_weight(self), self.bias
        assert bias is not None
        if self.normalised:
            bias = bias.detach()
        if self.kernel_size[0] == 1 and self.padding[0] == 0:
            stride_depth, *stride_plane = self.stride
            planes, batch = to_planes(x[:, :, ::stride_depth]), x.shape[0]
            plane_padding = tuple(int(size) for size in self.padding[1:])
            return from_planes(F.conv2d(planes, weight.squeeze(2), bias, tuple(stride_plane), plane_padding), batch)
        return F.conv3d(to_channels_last(x), weight, bias, self.stride, self.padding)


def active_weight(conv: nn.Module) -> Tensor:
    """Return a convolution's weight with zeros for the kernels that its `kernel_mask` switches off.

    A mask therefore acts as soon as it is written, even if the weight holds NaN. Gradients pass as if every kernel were
    used: those of inactive kernels tell where to grow.

    Raises:
        ValueError: the mask is not bool with one value for each kernel.
    """
    weight, mask = conv.weight, checked_mask(conv)  # a parametrization replaces the attribute `weight`
    assert isinstance(weight, Tensor)
    if mask is None:
        return weight
    inactive = ~mask.view(*weight.shape[:2], 1, 1, 1)
    if plain_operations():  # the compiler fuses this, and cannot partition writes in place
        finite = weight.nan_to_num(0, 0, 0)
        return torch.where(inactive, finite - finite.detach(), weight)
    active = weight.clone()
    active.detach().masked_fill_(inactive, 0)  # values only: the gradient stays that of a copy
    return active


def checked_mask(conv: nn.Module) -> Tensor | None:
    """Return a convolution's `kernel_mask`, or None if it has none.

    Raises:
        ValueError: it is not bool with one value for each kernel.
    """
    mask: Tensor | None = conv._buffers.get("kernel_mask")
    shape = cast(Tensor, conv.weight).shape[:2]
    if mask is not None and (mask.dtype != torch.bool or mask.shape != shape):
        raise ValueError(
            f"kernel_mask is {mask.dtype} of shape {tuple(mask.shape)}, expected torch.bool of {tuple(shape)}"
        )
    return mask


def to_channels_last(x: Tensor) -> Tensor:
    """Return `x` in channels-last memory; unchanged under torch.func, whose vmap has no memory formats."""
    if torch._C._are_functorch_transforms_active():
        return x
    return x.contiguous(memory_format=torch.channels_last_3d)


def to_planes(x: Tensor) -> Tensor:
    """Return (B, C, D, H, W) as (B * D, C, H, W): a view if `x` is channels-last."""
    batch, channels, depth, height, width = x.shape
    planes = x.permute(0, 2, 3, 4, 1).reshape(batch * depth, height, width, channels)
    if channels == 1:
        # A single channel's stride has no meaning, but torch reads the layout from it. unsqueeze sets it to 1, which is
        # channels-last: the convolution's output stays in that layout, and it is three times as fast.
        planes = planes.squeeze(-1).unsqueeze(-1)
    return planes.permute(0, 3, 1, 2)


def from_planes(planes: Tensor, batch: int) -> Tensor:
    """Return (B * D, C, H, W) as (B, C, D, H, W), the inverse of `to_planes`."""
    count, channels, height, width = planes.shape
    rows = planes.permute(0, 2, 3, 1).reshape(batch, count // batch, height, width, channels)
    return rows.permute(0, 4, 1, 2, 3)


class StrideUp3d(nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` with kernel = stride and no padding, as matrix products.

    Output voxel (s d + a, ..) is input voxel d times weight[:, :, a, ..]. No two products meet in a voxel, so
    (voxels, C_in) @ (C_in, C_out * volume) holds every output value once; the values only have to be reordered. There
    is one product for each (a, b) of depth and height. It holds whole lines of the output along the width, so
    reordering makes long copies. With `blocks=True` reordering is left to the reader: the output is a view
    (B, C_out, D, sd, H, sh, W, sw) of the products, which `shift_concat` accepts.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: tuple[int, int, int], *, blocks: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, stride, stride, bias=False)
        self.blocks = blocks

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        batch, _, depth, height, width = x.shape
        sd, sh, sw = (int(s) for s in self.stride)
        weights = active_weight(self).permute(2, 3, 0, 4, 1).reshape(sd * sh, self.in_channels, sw * self.out_channels)
        out = line_products(x.permute(0, 2, 3, 4, 1).reshape(-1, self.in_channels), weights)
        out = out.view(sd, sh, batch, depth, height, width, sw, self.out_channels)
        out = out.permute(2, 7, 3, 0, 4, 1, 5, 6)
        if self.blocks:
            return out
        # Through (B, D, H, W, C), so that the copy made here is channels-last.
        out = out.permute(0, 2, 3, 4, 5, 6, 7, 1).reshape(batch, depth * sd, height * sh, width * sw, -1)
        return out.permute(0, 4, 1, 2, 3)


def line_products(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the products (k, N, M) of rows (N, C) with each of the weights (k, C, M).

    Off the CPU, under autocast and in plain operations they are computed as one product.
    """
    if rows.device.type != "cpu" or torch.is_autocast_enabled("cpu") or plain_operations():
        count, channels, columns = weights.shape
        product = rows @ weights.transpose(0, 1).reshape(channels, count * columns)
        return product.view(-1, count, columns).transpose(0, 1)
    products: Tensor = OPERATION(rows, weights)
    return products


class _LineProducts(torch.autograd.Function):
    """torch.matmul of rows (N, C) and weights (k, C, M).

    matmul itself would keep k gradients of the rows as tensors and sum them; here they are added in place.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        out: Tensor = below_autograd(OPERATION, rows, weights)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a second derivative is wanted
            return plain_gradients(torch.matmul, ctx.saved_tensors, grad)
        found: tuple[Tensor, Tensor] = BACKWARD(grad, *ctx.saved_tensors)
        return found


def _line_products(rows: Tensor, weights: Tensor) -> Tensor:
    out = _empty_line_products(rows, weights)
    for product, weight in zip(out, weights, strict=True):
        torch.mm(rows, weight, out=product)
    return out


def _empty_line_products(rows: Tensor, weights: Tensor) -> Tensor:
    return rows.new_empty((weights.shape[0], rows.shape[0], weights.shape[2]))


def _line_products_backward(grad: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    grad_rows, grad_weights = _empty_line_products_backward(grad, rows, weights)
    for index, (part, weight) in enumerate(zip(grad, weights, strict=True)):
        torch.addmm(grad_rows, part, weight.T, beta=0 if index == 0 else 1, out=grad_rows)
        torch.mm(rows.T, part, out=grad_weights[index])
    return grad_rows, grad_weights


def _empty_line_products_backward(grad: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), weights.new_empty(weights.shape)


OPERATION = register(
    "line_products(Tensor rows, Tensor weights) -> Tensor",
    _line_products,
    _empty_line_products,
    autograd=_LineProducts.apply,
    device=ANY_DEVICE,
)
BACKWARD = register(
    "line_products_backward(Tensor grad, Tensor rows, Tensor weights) -> (Tensor, Tensor)",
    _line_products_backward,
    _empty_line_products_backward,
    device=ANY_DEVICE,
)


@register_flop_formula(OPERATION)
def _flops(rows: Any, weights: Any, *, out_shape: Any = None) -> int:
    return 2 * rows[0] * math.prod(weights)


@register_flop_formula(BACKWARD)
def _flops_backward(grad: Any, rows: Any, weights: Any, *, out_shape: Any = None) -> int:
    return 2 * _flops(rows, weights)
