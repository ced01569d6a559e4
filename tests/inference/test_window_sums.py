"""Planes yielded early equal those of whole-volume sums: against MONAI, for many shapes and steps."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from e2enet.inference import window_sums
from e2enet.inference.sliding_window import predict_planes, predict_probabilities
from e2enet.inference.window_sums import RESERVE_BYTES, WindowSums, device_of_sums
from e2enet.inference.windows import WindowGrid

SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 14), st.integers(1, 14))
PATCHES = st.tuples(*[st.integers(2, 8)] * 3)
STEPS = st.sampled_from([0.2, 0.3, 0.5, 0.7, 0.75, 1.0])
MIRRORS = st.sampled_from([(), (0,), (2,), (0, 1), (0, 1, 2)])
EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)


def network(seed: int, classes: int = 3) -> nn.Module:
    """Return a random 3x3x3 convolution: a voxel's logits depend on its neighbours, so windows disagree."""
    torch.manual_seed(seed)
    return nn.Conv3d(1, classes, 3, padding=1).eval()


def whole_volume(networks: list[nn.Module], image: Tensor, patch, step: float, mirrored) -> Tensor:
    """Compute the same mean over windows, networks and mirrored copies by MONAI, for the whole image at once."""
    subsets = [axes for size in range(len(mirrored) + 1) for axes in combinations(mirrored, size)]

    def average(windows: Tensor) -> Tensor:
        each = []
        for axes in subsets:
            dims = [axis + 2 for axis in axes]
            each += [one(windows.flip(dims)).softmax(dim=1).flip(dims) for one in networks]
        return torch.stack(each).mean(dim=0)

    with torch.no_grad():
        return sliding_window_inference(
            image[None], patch, 1, average, overlap=1 - step, mode="gaussian", sigma_scale=0.125
        )[0]


@EXAMPLES
@given(SHAPES, PATCHES, STEPS, MIRRORS, st.integers(1, 2), st.integers(1, 5))
def test_equal_to_the_whole_volume_at_once(shape, patch, step, mirrored, num_networks, batch_size) -> None:
    networks = [network(seed) for seed in range(num_networks)]
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(sum(shape))) * 3
    found = predict_probabilities(networks, image, patch, step=step, mirror_axes=mirrored, batch_size=batch_size)
    torch.testing.assert_close(found, whole_volume(networks, image, patch, step, mirrored), atol=2e-6, rtol=0)


@EXAMPLES
@given(SHAPES, PATCHES, STEPS)
def test_constant_in_constant_out(shape, patch, step) -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 0.0])

    class Constant(nn.Module):
        def forward(self, windows: Tensor) -> Tensor:
            return logits.view(1, -1, 1, 1, 1).expand(len(windows), -1, *windows.shape[2:])

    found = predict_probabilities([Constant()], torch.zeros(1, *shape), patch, step=step)
    expected = logits.softmax(dim=0).view(-1, 1, 1, 1).expand(-1, *shape)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("block", [1, 150, 10**6])
def test_blocks_and_strided_logits_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.randn(1, 13, 9, 11, generator=torch.Generator().manual_seed(1))
    layers = network(0)
    expected = predict_probabilities([layers], image, (5, 4, 6), mirror_axes=(0, 2))
    monkeypatch.setattr(window_sums, "BLOCK_VALUES", block)
    last = nn.Sequential(layers, ChannelsLast())
    found = predict_probabilities([last], image, (5, 4, 6), mirror_axes=(0, 2))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


class ChannelsLast(nn.Module):
    """Return the same values in channels-last memory order, as `e2enet.network` does."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last_3d)


def test_planes_are_handed_on_when_no_window_to_come_touches_them() -> None:
    events: list[str] = []
    planes = predict_planes(
        [network(0)], torch.zeros(1, 10, 4, 6), (4, 4, 4), on_window=lambda done: events.append("window")
    )
    for _ in planes:
        events.append("plane")
    # Layers of two windows each start at planes 0, 2, 4 and 6.
    layer = ["window"] * 2
    assert events == [*layer, *["plane"] * 2, *layer, *["plane"] * 2, *layer, *["plane"] * 2, *layer, *["plane"] * 4]


def test_no_more_planes_are_held_than_a_window_is_deep() -> None:
    grid = WindowGrid.over((1000, 8, 8), (4, 8, 8), 0.5)
    sums = WindowSums(grid, 3, 1, torch.device("cpu"))
    held = sum(value.numel() for value in vars(sums).values() if isinstance(value, Tensor))
    assert held == 4 * 8 * 8 * (3 + 2)  # the sums, and two maps of weights


def test_sums_lie_on_a_gpu_where_they_fit_beside_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = WindowGrid.over((400, 512, 512), (64, 160, 160), 0.5)
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    needed = 4 * 64 * 17 * 512 * 512
    for free, expected in ((needed + RESERVE_BYTES, cuda), (needed + RESERVE_BYTES - 1, cpu)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2 * free))
        # First case: the allocator holds the network's memory. Later case: it also holds the sums of the earlier case.
        for reserved, network in ((2 * 2**30, 2 * 2**30), (2 * 2**30 + needed, 2 * 2**30)):
            first = reserved == network
            monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device, held=reserved: held)
            monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device, most=network: most)
            left = free if first else free - needed
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, left=left: (left, 2 * left))
            assert device_of_sums(grid, 16, cuda) == expected
    assert device_of_sums(grid, 16, cpu) == cpu
