"""From network outputs to labels: regions are written in nnU-Net's order, whatever overlaps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from e2enet.data.preparation.outputs import segment_logits, segment_plane, write_regions
from e2enet.data.preparation.preprocess import Preprocessed
from e2enet.data.preparation.restore import restore_labels
from e2enet.inference.sliding_window import predict_probabilities

# Every combination of three regions, one column each.
INSIDE = torch.tensor([[0, 1, 0, 0, 1, 1, 0, 1], [0, 0, 1, 0, 1, 0, 1, 1], [0, 0, 0, 1, 0, 1, 1, 1]], dtype=torch.bool)


def test_later_regions_are_written_over_earlier_ones() -> None:
    assert write_regions(INSIDE, (1, 2, 3)).tolist() == [0, 1, 2, 3, 2, 3, 3, 3]
    assert write_regions(INSIDE, (3, 1, 2)).tolist() == [0, 3, 1, 2, 1, 2, 2, 2]
    assert write_regions(INSIDE, (1, 1, 300)).tolist() == [0, 1, 1, 300, 1, 300, 300, 300]
    assert (
        write_regions(INSIDE, (1, 2, 3)).dtype == torch.uint8
        and write_regions(INSIDE, (1, 2, 256)).dtype == torch.int16
    )


def test_a_region_is_where_its_probability_is_above_a_half() -> None:
    logits = torch.where(INSIDE, 0.1, -0.1)
    logits[0, 0] = 0.0  # a probability of exactly 0.5 is outside, as in nnU-Net
    expected = [0, 1, 2, 3, 2, 3, 3, 3]
    assert segment_plane(logits.sigmoid(), (1, 2, 3)).tolist() == expected
    batch = torch.stack([logits, -logits]).reshape(2, 3, 1, 2, 4)
    assert segment_logits(batch, (1, 2, 3))[0].flatten().tolist() == expected
    assert torch.equal(segment_logits(batch), batch.argmax(dim=1))


class Shifted(torch.nn.Module):
    """Return the logits 1 + x and 1 - x of two regions."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x + 1, 1 - x], dim=1)


@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
def test_probabilities_of_regions_are_sigmoids(mirror_axes: tuple[int, ...]) -> None:
    image = torch.randn(1, 7, 9, 8, generator=torch.Generator().manual_seed(0))
    found = predict_probabilities([Shifted()], image, (4, 5, 6), mirror_axes=mirror_axes, sigmoid=True)
    torch.testing.assert_close(found, torch.cat([image + 1, 1 - image]).sigmoid())
    assert bool((found.sum(dim=0) > 1.1).any())  # both regions may be likely at one voxel


def test_regions_come_back_to_the_native_grid() -> None:
    image = np.zeros((1, 4, 4, 4), np.float32)
    crop = (slice(1, 5), slice(0, 4), slice(2, 6))
    prepared = Preprocessed(image, crop, (6, 4, 6), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
    probabilities = torch.full((2, 4, 4, 4), 0.2)
    probabilities[0, 1:3] = 0.9
    probabilities[1, 2, :, :2] = 0.8
    planes: list[Any] = []
    labels = restore_labels(probabilities.unbind(1), prepared, planes.append, order=(2, 1))
    expected = np.zeros((6, 4, 6), np.uint8)
    expected[2:4, :, 2:6] = 2
    expected[3, :, 2:4] = 1
    np.testing.assert_array_equal(labels, expected)
    whole = np.stack(planes, axis=1)
    assert not whole[:, 0].any() and not whole[:, :, :, :2].any()  # probabilities are 0 outside of the crop
    np.testing.assert_array_equal(whole[(slice(None), *crop)], probabilities.numpy())
