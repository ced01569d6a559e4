"""Sliding windows: constant in, constant out; mirroring and ensembles against averages computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from e2enet.inference.sliding_window import count_windows, predict_probabilities

PATCH = (4, 6, 8)
SHAPES = [(4, 6, 8), (9, 13, 17), (3, 5, 7), (2, 11, 8), (5, 6, 30)]


class Constant(nn.Module):
    """Logits that do not depend on the input."""

    def __init__(self, logits: Sequence[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.view(1, -1, 1, 1, 1).expand(len(x), -1, *x.shape[2:])


class VoxelWise(nn.Module):
    """Logits (x, -x): overlapping windows agree, so tiling must not change the result."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], dim=1)


def one_sided_network(seed: int) -> nn.Module:
    """Return a network that changes under every mirroring: a random kernel over all three axes."""
    torch.manual_seed(seed)
    return nn.Conv3d(1, 3, 3, padding=1).eval()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [0.3, 0.5, 1.0])
def test_constant_in_constant_out(shape, step):
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    result = predict_probabilities([Constant([0.0, 1.0, -2.0])], image, PATCH, step=step, mirror_axes=(0, 2))
    expected = torch.tensor([0.0, 1.0, -2.0]).softmax(0).view(3, 1, 1, 1).expand(3, *shape)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_voxel_is_covered_and_in_its_place(shape, batch_size):
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    result = predict_probabilities([VoxelWise()], image, PATCH, mirror_axes=(0, 1, 2), batch_size=batch_size)
    expected = torch.cat([image, -image]).softmax(0)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_numpy_images_are_taken_and_left_alone():
    image = np.random.default_rng(0).standard_normal((1, 5, 7, 9)).astype(np.float32)
    before = image.copy()
    result = predict_probabilities([VoxelWise()], image, PATCH)
    np.testing.assert_allclose(result.sum(0).numpy(), 1.0, atol=1e-6)
    np.testing.assert_array_equal(image, before)


def test_mirroring_is_the_average_of_the_flipped_predictions():
    network = one_sided_network(0)
    image = torch.randn(1, *PATCH, generator=torch.Generator().manual_seed(2))
    result = predict_probabilities([network], image, PATCH, mirror_axes=(0, 2))
    with torch.no_grad():
        single = [
            network(image[None].flip(axes)).softmax(1).flip(axes)[0] if axes else network(image[None]).softmax(1)[0]
            for axes in ((), (2,), (4,), (2, 4))
        ]
    assert (single[0] - single[1]).abs().max() > 0.01
    torch.testing.assert_close(result, torch.stack(single).mean(0), atol=1e-6, rtol=0)


def test_mirrored_image_gives_the_mirrored_result():
    network = one_sided_network(3)
    image = torch.randn(1, 9, 11, 8, generator=torch.Generator().manual_seed(3))
    # Along W, windows of 4 start at voxels 0, 2 and 4 of 8. Mirroring maps this set of windows onto itself.
    result = predict_probabilities([network], image, (9, 11, 4), mirror_axes=(1, 2))
    flipped = predict_probabilities([network], image.flip(3), (9, 11, 4), mirror_axes=(1, 2))
    torch.testing.assert_close(flipped.flip(3), result, atol=1e-6, rtol=0)


def test_ensemble_is_the_mean_of_the_probabilities():
    networks = [one_sided_network(4), one_sided_network(5)]
    image = torch.randn(1, 7, 8, 10, generator=torch.Generator().manual_seed(4))
    together = predict_probabilities(networks, image, PATCH, mirror_axes=(1,))
    apart = [predict_probabilities([network], image, PATCH, mirror_axes=(1,)) for network in networks]
    torch.testing.assert_close(together, (apart[0] + apart[1]) / 2, atol=1e-6, rtol=0)


def test_bf16_adds_up_in_float32():
    result = predict_probabilities([one_sided_network(6)], torch.randn(1, 9, 9, 9), PATCH, amp_dtype=torch.bfloat16)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.sum(0), torch.ones(9, 9, 9), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [0.3, 0.5, 0.75, 1.0])
def test_windows_are_counted_as_they_come(shape, step):
    done: list[int] = []
    predict_probabilities(
        [Constant([0.0, 0.0])], torch.zeros(1, *shape), PATCH, step=step, batch_size=2, on_window=done.append
    )
    assert sum(done) == count_windows(shape, PATCH, step)


def test_count_of_the_documented_example():
    assert count_windows((100, 100, 32), (32, 32, 32), 0.5) == 6 * 6 * 1


@pytest.mark.parametrize("step", [0.0, -0.5, 1.1])
def test_impossible_step(step):
    with pytest.raises(ValueError, match="step"):
        predict_probabilities([VoxelWise()], torch.zeros(1, *PATCH), PATCH, step=step)
    with pytest.raises(ValueError, match="at least one network"):
        predict_probabilities([], torch.zeros(1, *PATCH), PATCH)
