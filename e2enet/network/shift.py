"""Restricted depth-shift: channel groups moved along depth so that a (1, 3, 3) convolution sees neighbouring slices.

The channels are split into m groups as `torch.chunk(C, m)` splits them and group g moves by g - m // 2 slices,
zero-filled: +1 means out[d] = in[d - 1]. Source: E2ENet (arXiv 2312.04727), Figure 4; spec section 2.

`shift_concat` is what the network calls: it concatenates several tensors and shifts the result, reading every
input voxel once and writing every output voxel once. `DepthShift` is the same for one tensor, as a module for
any other network.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from e2enet.network.operations import (
    ANY_DEVICE,
    below_autograd,
    empty_channels_last,
    plain_operations,
    register,
)


class Slab(NamedTuple):
    """Channels start..stop of source number `source`. They go to channels `target`.. and move by `shift` slices."""

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
    """Return each channel's shift; all are 0 if `shift_size` is 1."""
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
    """Concatenate and shift in one write; the backward pass is the reverse move, with one write per source."""

    @staticmethod
    def forward(ctx: Any, shift_size: int, *sources: Tensor) -> Tensor:
        counts = [source.shape[1] for source in sources]
        ctx.starts, ctx.counts, ctx.shift_size = [0, *accumulate(counts[:-1])], counts, shift_size
        ctx.steps = [() if source.ndim == 5 else tuple(source.shape[3::2]) for source in sources]
        out: Tensor = below_autograd(OPERATION, sources, shift_size)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        part = plain_part if torch.is_grad_enabled() else BACKWARD  # plain for a second derivative
        parts = ctx.starts, ctx.counts, ctx.steps, ctx.needs_input_grad[1:]
        grads = [
            part(grad, start, count, steps, ctx.shift_size) if needed else None
            for start, count, steps, needed in zip(*parts, strict=True)
        ]
        return None, *grads


def _shift_concat(sources: Sequence[Tensor], shift_size: int) -> Tensor:
    out = _empty_shift_concat(sources, shift_size)
    for slab in plan_slabs([source.shape[1] for source in sources], shift_size):
        target = out[:, slab.target : slab.target + slab.stop - slab.start]
        _move(sources[slab.source][:, slab.start : slab.stop], target, slab.shift, back=False)
    return out


def _empty_shift_concat(sources: Sequence[Tensor], shift_size: int) -> Tensor:
    channels = sum(source.shape[1] for source in sources)
    return empty_channels_last(sources[0], (sources[0].shape[0], channels, *whole_size(sources[0])))


def _shift_concat_backward(grad: Tensor, start: int, count: int, steps: Sequence[int], shift_size: int) -> Tensor:
    """Return one source's part of a concatenation's gradient: `count` channels from `start`.

    steps: of the blocks in which the source came, such as (1, 2, 2); empty if it came as a volume.
    """
    out = _empty_shift_concat_backward(grad, start, count, steps, shift_size)
    for slab in _part(grad, start, count, shift_size):
        given = grad[:, slab.target : slab.target + slab.stop - slab.start]
        _move(out[:, slab.start : slab.stop], given, slab.shift, back=True)
    return out


def _empty_shift_concat_backward(grad: Tensor, start: int, count: int, steps: Sequence[int], shift_size: int) -> Tensor:
    """Blocks lie in memory as `StrideUp3d` writes them, (sd, sh, B, D / sd, H / sh, W / sw, sw, C)."""
    batch, _, *size = grad.shape
    if not steps:
        return empty_channels_last(grad, (batch, count, *size))
    (sd, sh, sw), (depth, height, width) = steps, (edge // step for edge, step in zip(size, steps, strict=True))
    return grad.new_empty((sd, sh, batch, depth, height, width, sw, count)).permute(2, 7, 3, 0, 4, 1, 5, 6)


def plain_part(grad: Tensor, start: int, count: int, steps: Sequence[int], shift_size: int) -> Tensor:
    """The gradient of one source in plain operations."""
    slabs = _part(grad, start, count, shift_size)
    given = [grad[:, slab.target : slab.target + slab.stop - slab.start] for slab in slabs]
    whole = torch.cat([shift_depth(part, -slab.shift) for part, slab in zip(given, slabs, strict=True)], dim=1)
    return as_blocks(whole, steps) if steps else whole


def _part(grad: Tensor, start: int, count: int, shift_size: int) -> list[Slab]:
    """Return the slabs of the source that holds `count` channels from `start` on."""
    counts = start, count, grad.shape[1] - start - count
    return [slab for slab in plan_slabs(counts, shift_size) if slab.source == 1]


OPERATION = register(
    "shift_concat(Tensor[] sources, int shift_size) -> Tensor",
    _shift_concat,
    _empty_shift_concat,
    autograd=lambda sources, shift_size: _ShiftConcat.apply(shift_size, *sources),
    device=ANY_DEVICE,
)
BACKWARD = register(
    "shift_concat_backward(Tensor grad, SymInt start, SymInt count, SymInt[] steps, int shift_size) -> Tensor",
    _shift_concat_backward,
    _empty_shift_concat_backward,
    device=ANY_DEVICE,
)


def _move(source: Tensor, whole: Tensor, shift: int, *, back: bool) -> None:
    """Write `source`, moved by `shift` slices, into `whole` (B, c, D, H, W); with `back`, move `whole` back into it.

    Slices that receive nothing are set to zero. A source of blocks, (B, c, D / sd, sd, H / sh, sh, W / sw, sw), is
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
    """Return (D, H, W) of a tensor (B, C, D, H, W) or of its blocks (`as_blocks`)."""
    if source.ndim == 5:
        return source.shape[2], source.shape[3], source.shape[4]
    _, _, depth, sd, height, sh, width, sw = source.shape
    return depth * sd, height * sh, width * sw


def shift_concat(sources: Sequence[Tensor], shift_size: int = 3) -> Tensor:
    """Concatenate (B, C_k, D, H, W) tensors along the channels and shift the result along depth.

    Equal to `shift(torch.cat(sources, dim=1))`; the groups are those of the concatenated channels. The result is
    channels-last. A single source with `shift_size` 1 is returned as it is. Sources of different dtypes (autocast) are
    cast to the lowest floating precision among them. A source may come in blocks, as `StrideUp3d` can return it:
    (B, C_k, D / sd, sd, H / sh, sh, W / sw, sw).
    """
    check_shift_size(shift_size)
    plain = plain_operations()
    if plain:
        sources = [source.reshape(*source.shape[:2], *whole_size(source)) for source in sources]
    if shift_size == 1 and len(sources) == 1:
        return sources[0]
    if any(source.dtype != sources[0].dtype for source in sources):
        lowest = sources[0].dtype
        for source in sources:  # a loop: torch 2.6 compiles no min() with a key
            lowest = source.dtype if source.dtype.itemsize < lowest.itemsize else lowest
        sources = [source.to(lowest) for source in sources]
    if plain:
        return torch.cat(
            [
                shift_depth(sources[slab.source][:, slab.start : slab.stop], slab.shift)
                for slab in plan_slabs([source.shape[1] for source in sources], shift_size)
            ],
            dim=1,
        )
    out: Tensor = OPERATION(sources, shift_size)
    return out


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

    Examples:
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
