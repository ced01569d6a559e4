"""Learning rates by formula, step by step, and the rates of runs whose length changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from e2enet.training.callbacks import TrainLossLogger
from e2enet.training.schedules import constant, cosine, poly
from tests.training.conftest import quiet_trainer
from tests.training.test_module import loader, make_module


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
    # The factor rises from 0.2 to 1 over 4 steps, then falls to 0.1 over 4, with 0.55 half-way.
    assert found[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert found[6] == pytest.approx(1.1) and found[8] == pytest.approx(0.2)


def test_constant() -> None:
    assert rates(lambda optimizer: constant(optimizer, 3), 3) == [2.0, 2.0, 2.0]


def annealed(optimizer: Optimizer, total: int) -> CosineAnnealingLR:
    """Return a schedule that stores its length and computes each rate from the previous one."""
    return CosineAnnealingLR(optimizer, total)


def one_cycle(optimizer: Optimizer, total: int) -> OneCycleLR:
    """Return a schedule that also stores the limits of the rates and changes the optimizer's betas."""
    return OneCycleLR(optimizer, max_lr=0.01, total_steps=total + 1)


class Rates(pl.Callback):
    """Record rate and betas of each batch; save a checkpoint in the middle of the second epoch."""

    def __init__(self, path: Path) -> None:
        self.found: dict[tuple[int, int], tuple[float, Any]] = {}
        self.path = path

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        group = trainer.optimizers[0].param_groups[0]
        self.found[trainer.current_epoch, batch_idx] = (group["lr"], group["betas"])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (1, 0):
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    ("schedule", "interval"),
    [(poly, "epoch"), (poly, "step"), (cosine, "step"), (annealed, "epoch"), (one_cycle, "step")],
)
def test_a_run_of_another_length_has_the_rates_of_one_that_always_had_it(
    schedule: Callable[..., Any], interval: str, tmp_path: Path
) -> None:
    def train(epochs: int, source: str | None = None) -> dict[tuple[int, int], tuple[float, Any]]:
        target = f"schedule._target_={schedule.__module__}.{schedule.__name__}"
        module = make_module("~schedule.warmup", target, f"schedule.interval={interval}")
        rates, path = Rates(tmp_path / f"middle_of_{epochs}.ckpt"), source and tmp_path / f"{source}.ckpt"
        trainer = quiet_trainer(tmp_path, TrainLossLogger(), rates, max_epochs=epochs)
        trainer.fit(module, loader((2, 8, 8), 4, 2), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / f"end_of_{epochs}.ckpt")
        return rates.found

    two, three = train(2), train(3)
    assert len(three) == 6 and all(rate > 0 for rate, _ in three.values())
    assert train(3, "end_of_2") == {(2, 0): three[2, 0], (2, 1): three[2, 1]}
    train(3)
    assert train(2, "middle_of_3") == {(1, 1): two[1, 1]}


def test_a_schedule_that_has_ended_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = ["schedule._target_=torch.optim.lr_scheduler.PolynomialLR", "~schedule.warmup"]
    module = make_module(*ended, "schedule.interval=epoch", "++schedule.total_iters=1")
    quiet_trainer(tmp_path, TrainLossLogger(), max_epochs=2).fit(module, loader((2, 8, 8), 4, 2))
    assert capsys.readouterr().out.splitlines() == [
        "warning: epoch 2 begins with a learning rate of 0 (schedule): no weight changes while it is 0"
    ]
