"""Restricted depth-shift: channel groups moved along depth so that a (1, 3, 3) convolution sees neighbouring slices.

The channels are split into m groups as `torch.chunk(C, m)` splits them and group g moves by g - m // 2 slices,
zero-filled: +1 means out[d] = in[d - 1]. Source: E2ENet (arXiv 2312.04727), Figure 4; spec section 2.

`shift_concat` is what the network calls: it concatenates several tensors and shifts the result, reading every
input voxel once and writing every output voxel once. `DepthShift` is the same for one tensor, as a module for
any other network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Slab(NamedTuple):
    """Channels start..stop of source number `source`, which go to `target`.. and move by `shift` slices."""

    source: int
    start: int
    stop: int
    target: int
    shift: int


def group_shifts(channels: int, shift_size: int) -> list[tuple[int, int, int]]:
    """Return (start, stop, shift) of each channel group, the most negative shift first.

    Group sizes follow `torch.chunk`: 48 channels in 5 groups are 10, 10, 10, 10, 8; 8 channels in 5 groups are four
    groups of 2 (shifts -2, -1, 0, 1), because chunk may give fewer groups than asked for.
    """
    size = -(-channels // shift_size)
    margin = shift_size // 2
    return [
        (start, min(start + size, channels), group - margin) for group, start in enumerate(range(0, channels, size))
    ]


def plan_slabs(channels: Sequence[int], shift_size: int) -> list[Slab]:
    """Cut the concatenation of sources with these channel counts where either the source or the shift changes."""
    slabs: list[Slab] = []
    groups = group_shifts(sum(channels), shift_size)
    offset = 0
    for source, count in enumerate(channels):
        for start, stop, shift in groups:
            low, high = max(start, offset), min(stop, offset + count)
            if low < high:
                slabs.append(Slab(source, low - offset, high - offset, low, shift))
        offset += count
    return slabs


def overlap(depth: int, shift: int) -> tuple[slice, slice]:
    """Return the (target, source) depth slices that a move by `shift` keeps, for a volume of `depth` slices.

    depth 5, shift +2: target 2..5 takes source 0..3. |shift| >= depth keeps nothing (two empty slices).
    """
    kept = max(depth - abs(shift), 0)
    target, source = (depth - kept, 0) if shift > 0 else (0, depth - kept)
    return slice(target, target + kept), slice(source, source + kept)


class _ShiftConcat(torch.autograd.Function):
    """Concatenate and shift in one write; the backward pass is the opposite move, again one write per source."""

    @staticmethod
    def forward(ctx: Any, shift_size: int, *sources: Tensor) -> Tensor:
        first = sources[0]
        batch, _, depth, height, width = first.shape
        ctx.slabs = plan_slabs([source.shape[1] for source in sources], shift_size)
        ctx.shapes = [source.shape for source in sources]
        total = sum(source.shape[1] for source in sources)
        out = torch.empty(
            (batch, total, depth, height, width),
            dtype=first.dtype, device=first.device, memory_format=torch.channels_last_3d,
        )  # fmt: skip
        for slab in ctx.slabs:
            target = out[:, slab.target : slab.target + slab.stop - slab.start]
            _move(sources[slab.source][:, slab.start : slab.stop], target, slab.shift)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [
            torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last_3d)
            if needed else None
            for shape, needed in zip(ctx.shapes, ctx.needs_input_grad[1:], strict=True)
        ]  # fmt: skip
        for slab in ctx.slabs:
            into = grads[slab.source]
            if into is not None:
                part = grad[:, slab.target : slab.target + slab.stop - slab.start]
                _move(part, into[:, slab.start : slab.stop], -slab.shift)
        return None, *grads


def _move(source: Tensor, target: Tensor, shift: int) -> None:
    """Write `source` moved by `shift` slices into `target` (both (B, c, D, H, W)), zeros where nothing arrives."""
    depth = source.shape[2]
    kept, taken = overlap(depth, shift)
    target[:, :, kept].copy_(source[:, :, taken])
    target[:, :, : kept.start].zero_()
    target[:, :, kept.stop :].zero_()


def shift_concat(sources: Sequence[Tensor], shift_size: int = 3) -> Tensor:
    """Concatenate (B, C_k, D, H, W) tensors along the channels and shift the result along depth.

    Equal to `shift(torch.cat(sources, dim=1))`; the groups are those of the concatenated channels. The result is
    channels-last. One source and `shift_size` 1 is returned as it is. Sources of different dtype (autocast) are
    brought to the lowest floating precision among them.
    """
    check_shift_size(shift_size)
    if shift_size == 1 and len(sources) == 1:
        return sources[0]
    dtypes = {source.dtype for source in sources}
    if len(dtypes) > 1:
        lowest = min(dtypes, key=lambda dtype: dtype.itemsize)
        sources = [source.to(lowest) for source in sources]
    if torch.compiler.is_compiling():  # a compiler fuses plain operations by itself
        return torch.cat(
            [
                shift_depth(sources[slab.source][:, slab.start : slab.stop], slab.shift)
                for slab in plan_slabs([source.shape[1] for source in sources], shift_size)
            ],
            dim=1,
        )
    return _ShiftConcat.apply(shift_size, *sources)


def shift_depth(x: Tensor, shift: int) -> Tensor:
    """Move (B, C, D, H, W) by `shift` slices along depth, zero-filled: +1 means out[d] = in[d - 1]."""
    before, after = max(shift, 0), max(-shift, 0)
    return F.pad(x, (0, 0, 0, 0, before, after)).narrow(2, after, x.shape[2])


def check_shift_size(shift_size: int) -> None:
    """Raise ValueError unless `shift_size` is a positive odd number."""
    if shift_size < 1 or shift_size % 2 == 0:
        raise ValueError(f"shift_size must be a positive odd number (1 is no shift), got {shift_size}")


class DepthShift(nn.Module):
    """Restricted depth-shift of (B, C, D, H, W) as a module without parameters, for any network.

    Place it before a convolution with a (1, 3, 3) kernel. `shift_size` m is odd; 1 leaves the input as it is.

    Example:
        >>> layer = nn.Sequential(DepthShift(3), nn.Conv3d(32, 32, (1, 3, 3), padding=(0, 1, 1)))
    """

    def __init__(self, shift_size: int = 3) -> None:
        super().__init__()
        check_shift_size(shift_size)
        self.shift_size = shift_size

    def forward(self, x: Tensor) -> Tensor:
        return shift_concat([x], self.shift_size)

    def extra_repr(self) -> str:
        return f"shift_size={self.shift_size}"
