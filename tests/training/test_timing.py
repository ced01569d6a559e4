"""The share of time spent waiting for data, with a slow loader and a clock that the test advances."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, IterableDataset

from e2enet.training import callbacks, timing
from e2enet.training.callbacks import EpochPrinter
from e2enet.training.module import SegmentationModule
from e2enet.training.timing import LoaderWait, TimeKeeper, share_waited
from tests.training.conftest import quiet_trainer


class Clock:
    """Stand-in for the module `time` that only tests advance."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class SlowLoader(IterableDataset):
    """One batch per number, which takes so many seconds of the clock."""

    def __init__(self, clock: Clock, seconds: list[float]) -> None:
        self.clock, self.seconds = clock, seconds

    def __iter__(self) -> Iterator[torch.Tensor]:
        for seconds in self.seconds:
            self.clock.now += seconds
            yield torch.ones(1)

    def __len__(self) -> int:
        return len(self.seconds)


class Worker(pl.LightningModule):
    """Two seconds of work per batch, and one second of transfer to the device, which is no waiting."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.weight = torch.nn.Parameter(torch.ones(1))

    def on_after_batch_transfer(self, batch: torch.Tensor, dataloader_idx: int) -> torch.Tensor:
        self.clock.now += 1.0
        return batch

    def training_step(self, batch: torch.Tensor, batch_index: int) -> torch.Tensor:
        self.clock.now += 2.0
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, str]]]:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)

    def run(seconds: list[float], log_every: int) -> list[dict[str, str]]:
        wait = LoaderWait()
        logger = CSVLogger(tmp_path, name="", version="")
        keeper = TimeKeeper(wait, log_every)
        trainer = quiet_trainer(tmp_path, keeper, logger=logger, profiler=wait, log_every_n_steps=log_every)
        trainer.fit(Worker(clock), DataLoader(SlowLoader(clock, seconds), batch_size=None))
        with (tmp_path / "metrics.csv").open() as stream:
            return list(csv.DictReader(stream))

    return run


def column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row[name]]


def test_each_row_of_steps_tells_the_share_since_the_row_before(fit: Callable[..., list[dict[str, str]]]) -> None:
    rows = fit([1.0, 5.0, 0.0, 0.0, 3.0, 0.0], log_every=2)
    # Waited 6 s of 12 s (each step works for 3 s), then 0 of 6, then 3 of 9.
    assert column(rows, "time/data_share_step") == pytest.approx([1 / 2, 0, 1 / 3])
    assert column(rows, "time/data_share") == pytest.approx([9 / 27])
    assert column(rows, "time/step") == pytest.approx([27 / 6])


def test_every_single_step_where_asked(fit: Callable[..., list[dict[str, str]]]) -> None:
    rows = fit([1.0, 5.0, 0.0, 0.0, 3.0, 0.0], log_every=1)
    assert column(rows, "time/data_share_step") == pytest.approx([1 / 4, 5 / 8, 0, 0, 1 / 2, 0])


def test_no_time_is_no_waiting() -> None:
    assert share_waited([]) == share_waited([(0.0, 0.0)]) == 0.0


def test_the_epoch_line_tells_much_waiting_and_advises_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(callbacks, "say", lines.append)
    module = SegmentationModule.__new__(SegmentationModule)
    printer = EpochPrinter()
    for epoch, (share, scores) in enumerate(
        [(0.6, {"val/dice": 0.5}), (0.05, {}), (0.23, {"val_full/dice": 0.4}), (0.3, {})]
    ):
        object.__setattr__(module, "scores", scores)
        trainer: Any = type("Trainer", (), {"is_global_zero": True, "current_epoch": epoch, "max_epochs": 4})
        trainer.callback_metrics = {"train/loss": 1.0, "time/step": 0.2, "time/data_share": share, "val/dice": 0.5}
        printer.on_train_epoch_end(trainer, module)
    assert lines == [
        "epoch 1/4: loss 1.000, val dice 0.500, s/step 0.200, waited 60% for data",
        "epoch 2/4: loss 1.000, s/step 0.200",
        "epoch 3/4: loss 1.000, whole cases 0.400, s/step 0.200, waited 23% for data",
        "To wait less: more data.num_workers, or data.augment_on=device",
        "epoch 4/4: loss 1.000, s/step 0.200, waited 30% for data",
    ]
