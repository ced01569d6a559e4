"""Losses with ignored voxels and with overlapping regions, against losses of the annotated voxels alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional as F

from e2enet.common.errors import InputError
from e2enet.data.formats.scheme import LabelScheme
from e2enet.training import losses
from e2enet.training.losses import DeepSupervisionLoss, DiceBCE, DiceCrossEntropy, build_loss

REGIONS = [[1, 2, 3], [2, 3], [3]]
IGNORE = 4


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Logits of three outputs, and labels 0 to 2 with a quarter of ignored voxels."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (2, 4, 6, 8), generator=generator)
    return torch.randn(2, 3, 4, 6, 8, generator=generator), torch.where(target == 3, IGNORE, target)


def make(kind: str, **options: Any) -> torch.nn.Module:
    return DiceCrossEntropy(**options) if kind == "classes" else DiceBCE(REGIONS, **options)


@pytest.mark.parametrize("kind", ["classes", "regions"])
def test_ignored_voxels_are_as_if_they_were_not_there(kind: str, batch: tuple[Tensor, Tensor]) -> None:
    logits, target = batch
    known = target != IGNORE
    kept = logits.movedim(1, 0)[:, known].reshape(1, 3, 1, 1, -1)
    expected = make(kind)(kept, target[known].reshape(1, 1, 1, -1))
    torch.testing.assert_close(make(kind, ignore=IGNORE)(logits, target), expected)


@pytest.mark.parametrize("kind", ["classes", "regions"])
@pytest.mark.parametrize("batch_dice", [True, False])
def test_nothing_is_learnt_from_ignored_voxels(kind: str, batch_dice: bool, batch: tuple[Tensor, Tensor]) -> None:
    logits, target = batch
    ignored = (target == IGNORE)[:, None].expand_as(logits)
    loss = make(kind, ignore=IGNORE, batch_dice=batch_dice)
    values, gradients = [], []
    for there in (0.0, 50.0):
        changed = torch.where(ignored, logits + there * torch.arange(3).view(1, 3, 1, 1, 1), logits).requires_grad_()
        value = loss(changed, target)
        (gradient,) = torch.autograd.grad(value, changed)
        values.append(value.detach())
        gradients.append(gradient)
    assert torch.equal(values[0], values[1]) and torch.equal(gradients[0], gradients[1])
    assert not gradients[0][ignored].any() and bool((gradients[0][~ignored] != 0).all())


@pytest.mark.parametrize("kind", ["classes", "regions"])
def test_a_batch_of_ignored_voxels_costs_nothing(kind: str) -> None:
    logits = torch.randn(1, 3, 2, 2, 2, requires_grad=True)
    loss = make(kind, ignore=IGNORE)(logits, torch.full((1, 2, 2, 2), IGNORE))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("kind", ["classes", "regions"])
def test_heads_of_deep_supervision_ignore_too(kind: str, batch: tuple[Tensor, Tensor]) -> None:
    logits, target = batch
    coarse = torch.randn(2, 3, 2, 3, 4, requires_grad=True)
    DeepSupervisionLoss(make(kind, ignore=IGNORE))([logits, coarse], target).backward()
    first = target[:, ::2, ::2, ::2]  # the first voxel of each cell
    assert coarse.grad is not None
    assert torch.equal((coarse.grad != 0).any(dim=1), first != IGNORE)


@pytest.mark.parametrize("kind", ["classes", "regions"])
def test_processes_share_the_mean_over_annotated_voxels(
    kind: str, batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes have unequal numbers of them. Their mean gradient equals that of both samples in one process."""
    logits, target = batch
    target[1, :3] = IGNORE
    loss, weight = make(kind, ignore=IGNORE), torch.ones((), requires_grad=True)
    expected = loss(weight * logits, target)
    (gradient,) = torch.autograd.grad(expected, weight)
    parts = list(zip(logits.split(1), target.split(1), strict=True))
    alone = [on_a_process(loss, *part, [], monkeypatch) for part in parts]  # records what each process sends
    together = [on_a_process(loss, *parts[rank], alone[1 - rank][2], monkeypatch) for rank in range(2)]
    for value, _, _ in together:
        torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close((together[0][1] + together[1][1]) / 2, gradient)


def on_a_process(
    loss: torch.nn.Module, logits: Tensor, target: Tensor, others: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return loss, its gradient by a factor of the logits, and the tensors that one of two processes sends.

    `others` are the tensors that it receives.
    """
    sent, waiting = list[Tensor](), iter(others)

    def all_reduce(total: Tensor) -> None:
        sent.append(total.clone())
        total += next(waiting, torch.zeros(()))

    with monkeypatch.context() as patch:
        patch.setattr(losses, "in_process_group", lambda: True)
        patch.setattr(losses.distributed, "get_world_size", lambda: 2)
        patch.setattr(losses.distributed, "all_reduce", all_reduce)
        weight = torch.ones((), requires_grad=True)
        value = loss(weight * logits, target)
    (gradient,) = torch.autograd.grad(value, weight)
    return value.detach(), gradient, sent


def test_regions_agree_with_monai(batch: tuple[Tensor, Tensor]) -> None:
    logits, target = batch[0], torch.randint(0, 4, (2, 4, 6, 8), generator=torch.Generator().manual_seed(1))
    inside = torch.stack([target >= 1, target >= 2, target == 3], dim=1).float()
    dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)(logits, inside)
    expected = 2.0 * dice + 3.0 * F.binary_cross_entropy_with_logits(logits, inside)
    torch.testing.assert_close(DiceBCE(REGIONS, dice_weight=2.0, cross_entropy_weight=3.0)(logits, target), expected)


def test_half_precision_regions_are_summed_in_float32() -> None:
    # 64^3 voxels: a float16 sum would be infinite.
    logits, target = torch.zeros(1, 1, 64, 64, 64, dtype=torch.float16), torch.ones(1, 64, 64, 64, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = DiceBCE([[1]])(logits, target)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(1 - 1 / 1.5 + math.log(2), rel=1e-5)


def test_the_dataset_chooses_what_is_learnt() -> None:
    config = {"_target_": "e2enet.training.losses.DiceCrossEntropy", "smooth": 0.5, "dice_weight": 2.0}
    names = {0: "background", 1: "a", 2: "b"}
    plain = build_loss(config, LabelScheme(names)).loss
    assert isinstance(plain, DiceCrossEntropy) and plain.ignore is None
    sparse = build_loss(config, LabelScheme(names, ignore=3)).loss
    assert isinstance(sparse, DiceCrossEntropy) and sparse.ignore == 3 and sparse.smooth == 0.5
    regions = LabelScheme(names, 3, {"all": (1, 2), "b": (2,)}, (1, 2))
    found = build_loss(config, regions).loss
    assert isinstance(found, DiceBCE) and found.ignore == 3 and found.smooth == 0.5 and found.dice_weight == 2.0
    assert found.members.tolist() == [[0, 1, 1, 0], [0, 0, 1, 0]]
    assert not build_loss(config, regions).state_dict()  # checkpoints store only the network
    for wrong, reason in (
        (
            {"_target_": "monai.losses.DiceCELoss"},
            "loss._target_=monai.losses.DiceCELoss: cannot be built for",
        ),
        ({**config, "include_background": True}, r"give it ignore and regions: .*include_background"),
    ):
        with pytest.raises(InputError, match=reason):
            build_loss(wrong, regions)
