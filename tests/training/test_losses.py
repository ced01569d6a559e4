"""The loss against hand-worked numbers and MONAI's DiceCELoss."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from e2enet.network.e2enet import E2ENet
from e2enet.training.losses import DeepSupervisionLoss, DiceCrossEntropy, head_weights, reduce_target


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, 6, generator=generator)
    return logits, torch.randint(0, 4, (2, 3, 5, 6), generator=generator)


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("include_background", [True, False])
def test_agrees_with_monai(batch: tuple[Tensor, Tensor], batch_dice: bool, include_background: bool) -> None:
    logits, target = batch
    ours = DiceCrossEntropy(batch_dice=batch_dice, include_background=include_background)
    monai = DiceCELoss(
        to_onehot_y=True,
        softmax=True,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
        batch=batch_dice,
        include_background=include_background,
    )
    torch.testing.assert_close(ours(logits, target), monai(logits, target[:, None]))


def test_uniform_prediction_by_hand() -> None:
    # Two classes, 4 voxels, 1 of them foreground, p = 1/2 everywhere: dice = 2 * 0.5 / (2 + 1), CE = ln 2.
    target = torch.tensor([1, 0, 0, 0]).view(1, 1, 2, 2)
    loss = DiceCrossEntropy(smooth=0.0, dice_weight=3.0, cross_entropy_weight=2.0)(torch.zeros(1, 2, 1, 2, 2), target)
    assert loss.item() == pytest.approx(3.0 * (1 - 1 / 3) + 2.0 * math.log(2))


def test_perfect_prediction_with_an_absent_class_is_zero() -> None:
    target = torch.tensor([1, 0, 0, 1]).view(1, 1, 2, 2)
    logits = 50.0 * torch.nn.functional.one_hot(target, 3).permute(0, 4, 1, 2, 3).float()
    assert DiceCrossEntropy()(logits, target).item() == pytest.approx(0.0, abs=1e-6)


def test_half_precision_logits_are_summed_in_float32() -> None:
    # 64^3 voxels: a float16 sum would be infinite.
    logits = torch.zeros(1, 2, 64, 64, 64, dtype=torch.float16)
    target = torch.ones(1, 64, 64, 64, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = DiceCrossEntropy()(logits, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1 - 2 * 0.5 / 1.5 + math.log(2), rel=1e-5)


def test_head_weights() -> None:
    assert head_weights(1) == [1.0]
    assert head_weights(4) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])


def test_targets_are_reduced_by_nearest_sampling() -> None:
    target = torch.arange(16).view(1, 1, 4, 4)
    assert reduce_target(target, (1, 2, 2)).tolist() == [[[[0, 2], [8, 10]]]]
    assert reduce_target(target, (1, 4, 4)) is target


def test_coarser_heads_look_around_the_first_voxel_of_their_cells() -> None:
    """This voxel is the target, as kernels of size 3 and stride 2 are centred on voxels 0, 2, 4 .. of their input."""
    size, offsets = 32, dict[int, list[float]]()
    for seed in range(3):
        torch.manual_seed(seed)
        image = torch.randn(1, 1, size, size, size, requires_grad=True)
        for logits in E2ENet(1, 2, [(2, 2, 2)] * 4, base_features=4)(image)[1:]:
            middle = logits.shape[-1] // 2
            (gradient,) = torch.autograd.grad(logits[0, 1, middle, middle, middle], image, retain_graph=True)
            weight = gradient[0, 0].square() / gradient.square().sum()
            for axis in range(3):
                mean = torch.tensordot(torch.arange(float(size)), weight.movedim(axis, 0), 1).sum()
                stride = size // logits.shape[-1]
                offsets.setdefault(stride, []).append(float(mean) - stride * middle)
    for stride in (2, 4):
        seen = sum(offsets[stride]) / len(offsets[stride])
        assert abs(seen) < 0.5 < abs(seen - (stride - 1) / 2)


def test_deep_supervision_weighs_the_heads(batch: tuple[Tensor, Tensor]) -> None:
    logits, target = batch
    coarse = torch.randn(2, 4, 3, 2, 3, generator=torch.Generator().manual_seed(1))
    loss = DiceCrossEntropy()
    expected = 2 / 3 * loss(logits, target) + 1 / 3 * loss(coarse, reduce_target(target, (3, 2, 3)))
    torch.testing.assert_close(DeepSupervisionLoss(loss)([logits, coarse], target), expected)
