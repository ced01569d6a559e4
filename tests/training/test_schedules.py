"""Learning rates by formula, step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from e2enet.training.schedules import constant, cosine, poly


def rates(make: Callable[[torch.optim.Optimizer], LambdaLR], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_poly() -> None:
    expected = [2.0 * (1 - t / 4) ** 0.9 for t in range(5)] + [0.0]
    assert rates(lambda optimizer: poly(optimizer, 4), 6) == pytest.approx(expected)


def test_cosine_with_warm_up() -> None:
    found = rates(lambda optimizer: cosine(optimizer, 8, warmup=0.5, start=0.2, final=0.1), 9)
    # Rises from 0.2 to 1 over 4 steps, then falls to 0.1 over 4: 0.55 half-way.
    assert found[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert found[6] == pytest.approx(1.1) and found[8] == pytest.approx(0.2)


def test_constant() -> None:
    assert rates(lambda optimizer: constant(optimizer, 3), 3) == [2.0, 2.0, 2.0]
