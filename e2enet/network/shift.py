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


def channel_shifts(channels: int, shift_size: int) -> list[int]:
    """Return each channel's shift; all are 0 where `shift_size` is 1."""
    return [shift for start, stop, shift in group_shifts(channels, shift_size) for _ in range(start, stop)]


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
        ctx.slabs = plan_slabs([source.shape[1] for source in sources], shift_size)
        ctx.templates = [_template(source) for source in sources]
        total = sum(source.shape[1] for source in sources)
        size = whole_size(first)
        out = torch.empty(
            (len(first), total, *size), dtype=first.dtype, device=first.device, memory_format=torch.channels_last_3d
        )
        for slab in ctx.slabs:
            target = out[:, slab.target : slab.target + slab.stop - slab.start]
            _move(sources[slab.source][:, slab.start : slab.stop], target, slab.shift, back=False)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = [
            torch.empty_like(template, dtype=grad.dtype, device=grad.device) if needed else None
            for template, needed in zip(ctx.templates, ctx.needs_input_grad[1:], strict=True)
        ]
        for slab in ctx.slabs:
            into = grads[slab.source]
            if into is not None:
                part = grad[:, slab.target : slab.target + slab.stop - slab.start]
                _move(into[:, slab.start : slab.stop], part, slab.shift, back=True)
        return None, *grads


def _template(source: Tensor) -> Tensor:
    """A tensor without memory of the shape and the order in memory that the source's gradient takes."""
    if source.ndim == 8:
        return torch.empty_like(source, device="meta")
    return torch.empty(source.shape, device="meta", memory_format=torch.channels_last_3d)


def _move(source: Tensor, whole: Tensor, shift: int, *, back: bool) -> None:
    """Write `source` moved by `shift` slices into `whole` (B, c, D, H, W), or, with `back`, the opposite.

    What is written is zero where nothing arrives. A source of blocks, (B, c, D / sd, sd, H / sh, sh, W / sw, sw), is
    moved one slice of its blocks at a time: slice a of block d lies at depth d sd + a, and a + shift = q sd + r puts
    it into slice r of block d + q.
    """
    blocks = source if source.ndim == 8 else as_blocks(source, (1, 1, 1))
    stride = blocks.shape[3]
    cells = as_blocks(whole, (stride, blocks.shape[5], blocks.shape[7]))
    for slice_in in range(stride):
        moved_blocks, slice_out = divmod(slice_in + shift, stride)
        there, here = overlap(blocks.shape[2], moved_blocks)
        read, kept, write, taken = (
            (cells[:, :, :, slice_out], there, blocks[:, :, :, slice_in], here)
            if back
            else (blocks[:, :, :, slice_in], here, cells[:, :, :, slice_out], there)
        )
        write[:, :, taken].copy_(read[:, :, kept])
        write[:, :, : taken.start].zero_()
        write[:, :, taken.stop :].zero_()


def as_blocks(x: Tensor, stride: Sequence[int]) -> Tensor:
    """View (B, C, D, H, W) as (B, C, D / sd, sd, H / sh, sh, W / sw, sw)."""
    batch, channels, *size = x.shape
    split = [part for edge, step in zip(size, stride, strict=True) for part in (edge // step, step)]
    return x.view(batch, channels, *split)


def whole_size(source: Tensor) -> tuple[int, int, int]:
    """(D, H, W) of a tensor (B, C, D, H, W) or of its blocks (`as_blocks`)."""
    if source.ndim == 5:
        return source.shape[2], source.shape[3], source.shape[4]
    _, _, depth, sd, height, sh, width, sw = source.shape
    return depth * sd, height * sh, width * sw


def shift_concat(sources: Sequence[Tensor], shift_size: int = 3) -> Tensor:
    """Concatenate (B, C_k, D, H, W) tensors along the channels and shift the result along depth.

    Equal to `shift(torch.cat(sources, dim=1))`; the groups are those of the concatenated channels. The result is
    channels-last. One source and `shift_size` 1 is returned as it is. Sources of different dtype (autocast) are
    brought to the lowest floating precision among them. A source may come in blocks, as `StrideUp3d` can give it:
    (B, C_k, D / sd, sd, H / sh, sh, W / sw, sw).
    """
    check_shift_size(shift_size)
    if torch.compiler.is_compiling():  # a compiler fuses plain operations by itself
        sources = [source.reshape(*source.shape[:2], *whole_size(source)) for source in sources]
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
