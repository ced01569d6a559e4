"""Depth shift: group sizes, values, gradients, and equality with the plain pad-chunk-roll-cat description."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.transcription import shift_depth_plainly
from e2enet.network.shift import DepthShift, as_blocks, group_shifts, overlap, plan_slabs, shift_concat


def test_group_sizes_follow_chunk() -> None:
    assert [stop - start for start, stop, _ in group_shifts(48, 5)] == [10, 10, 10, 10, 8]
    assert group_shifts(8, 5) == [(0, 2, -2), (2, 4, -1), (4, 6, 0), (6, 8, 1)]  # chunk gives four groups
    assert group_shifts(1, 5) == [(0, 1, -2)]
    assert group_shifts(4, 5) == [(0, 1, -2), (1, 2, -1), (2, 3, 0), (3, 4, 1)]


def test_plus_one_takes_the_slice_before() -> None:
    x = torch.arange(1.0, 5.0).view(1, 1, 4, 1, 1).expand(1, 3, 4, 1, 1)
    shifted = DepthShift(3)(x)[0, :, :, 0, 0]
    assert shifted.tolist() == [[2, 3, 4, 0], [1, 2, 3, 4], [0, 1, 2, 3]]


def test_a_shift_beyond_the_volume_leaves_zeros() -> None:
    assert overlap(2, 5) == (slice(2, 2), slice(0, 0))
    out = DepthShift(11)(torch.ones(1, 11, 2, 3, 3))
    assert out.sum(dim=(0, 2, 3, 4)).tolist() == [0, 0, 0, 0, 9, 18, 9, 0, 0, 0, 0]


def test_slabs_cut_where_source_or_shift_changes() -> None:
    slabs = plan_slabs([4, 5], 3)  # groups of 3: channels 0-2, 3-5, 6-8 of the concatenation
    assert [(s.source, s.start, s.stop, s.target, s.shift) for s in slabs] == [
        (0, 0, 3, 0, -1), (0, 3, 4, 3, 0), (1, 0, 2, 4, 0), (1, 2, 5, 6, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 2, 2), (3, 1, 2), (1, 1, 1)])
@pytest.mark.parametrize("shift_size", [1, 3, 5, 11])
def test_blocks_give_what_their_whole_gives(stride: tuple[int, int, int], shift_size: int) -> None:
    torch.manual_seed(0)
    plain = torch.randn(2, 3, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    whole = torch.randn(2, 8, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    expected = shift_concat([plain, whole], shift_size)
    found = shift_concat([plain, as_blocks(whole, stride)], shift_size)
    assert torch.equal(found, expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((out * weights).sum(), [plain, whole]) for out in (expected, found)]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    channels=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    shift_size=st.sampled_from([1, 3, 5, 7, 11]),
    depth=st.integers(1, 6),
    batch=st.integers(1, 2),
)
def test_equals_the_plain_description(channels: list[int], shift_size: int, depth: int, batch: int) -> None:
    sources = [torch.randn(batch, count, depth, 3, 2, dtype=torch.float64) for count in channels]
    expected = torch.cat(sources, dim=1)
    if shift_size > 1:
        expected = shift_depth_plainly(expected, shift_size)
    assert torch.equal(shift_concat(sources, shift_size), expected)


def test_gradient_of_the_concatenation() -> None:
    sources = [torch.randn(2, c, 4, 2, 3, dtype=torch.float64, requires_grad=True) for c in (2, 3, 1)]
    assert torch.autograd.gradcheck(lambda *parts: shift_concat(parts, 3), sources)


def test_sources_of_two_precisions_give_the_lower() -> None:
    out = shift_concat([torch.ones(1, 1, 2, 1, 1), torch.ones(1, 1, 2, 1, 1, dtype=torch.bfloat16)], 1)
    assert out.dtype == torch.bfloat16


@pytest.mark.parametrize("size", [0, 2, -3])
def test_even_or_negative_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="positive odd number"):
        DepthShift(size)


def test_depth_shift_works_in_another_network() -> None:
    other = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), DepthShift(3), nn.Conv3d(6, 2, (1, 3, 3), padding=(0, 1, 1)))
    x = torch.zeros(1, 1, 5, 4, 4)
    x[:, :, 2] = 1
    other(x).sum().backward()
    assert other(x).shape == (1, 2, 5, 4, 4) and other[0].weight.grad.abs().sum() > 0
