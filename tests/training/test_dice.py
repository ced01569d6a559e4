"""Dice from voxel counts, against torchmetrics, and without its memory."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.segmentation import dice_score

from e2enet.training.dice import DiceCounts


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    predicted, true = torch.randint(0, 4, (2, 3, 5, 6, 7), generator=generator)
    return predicted, true


def test_agrees_with_torchmetrics_over_all_voxels(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    predicted, true = images
    counts = DiceCounts(5)
    for segmentation, label in zip(predicted, true, strict=True):  # counts add up over cases
        counts.update(segmentation, label)
    found = counts.compute()
    expected = dice_score(predicted, true, 5, average=None, aggregation_level="global", input_format="index")
    torch.testing.assert_close(found[:4], expected[0][:4])
    assert torch.isnan(found[4])  # class 4 is in neither


def test_missed_and_invented_classes_score_zero() -> None:
    counts = DiceCounts(4)
    counts.update(torch.tensor([[0, 0, 2, 3]]), torch.tensor([[0, 1, 0, 3]]))
    assert counts.compute().tolist() == pytest.approx([0.5, 0.0, 0.0, 1.0])


def test_reset_forgets(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    counts = DiceCounts(4)
    counts.update(*images)
    counts.reset()
    counts.update(images[0], images[0])
    assert counts.compute().tolist() == [1.0] * 4


def test_deterministic_algorithms_do_not_change_it(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    plain, strict = DiceCounts(4), DiceCounts(4)
    plain.update(*images)
    torch.use_deterministic_algorithms(True)
    try:
        strict.update(*images)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(plain.compute(), strict.compute())


def test_ignored_voxels_are_not_counted(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    predicted, true = images
    ignored = true == 3
    counts, known = DiceCounts(3, ignore=3), DiceCounts(3)
    counts.update(predicted.where(~ignored, 1).clamp(max=2), true)
    known.update(predicted[~ignored].clamp(max=2), true[~ignored])
    assert torch.equal(counts.compute(), known.compute())


def test_regions_are_counted_as_united(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    predicted, true = images
    counts = DiceCounts(3, regions=[[1, 2, 3], [2]])
    for segmentation, label in zip(predicted, true, strict=True):
        counts.update(segmentation.to(torch.uint8), label)
    united, whole = DiceCounts(2), DiceCounts(4)
    united.update(predicted.clamp(max=1), true.clamp(max=1))
    whole.update(predicted, true)
    dice, mean = counts.compute_and_reset()
    assert dice.tolist() == [united.compute()[0], united.compute()[1], whole.compute()[2]]
    assert float(mean) == pytest.approx(float(dice[1:].mean()))
