"""Time of training steps: work, and waiting for the loader's next batch."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.profilers import PassThroughProfiler, Profiler

FETCH = "[_TrainingEpochLoop].train_dataloader_next"  # Lightning's name of the wait for a training batch


class LoaderWait(Profiler):
    """Adds up the seconds that training waits for its loader.

    It is a profiler, since Lightning's callback hooks run after the batch is on the device. The processing there, such
    as augmentation, is work and not waiting.

    Args:
        profiler: that of `trainer.profiler`; all calls are passed on to it.
    """

    def __init__(self, profiler: Profiler | None = None) -> None:
        self.profiler = profiler or PassThroughProfiler()
        super().__init__()
        self.seconds = 0.0
        self._since = 0.0

    @property
    def _lightning_module(self) -> Any:
        """The module, which the trainer sets on its profiler."""
        return getattr(self.profiler, "_lightning_module", None)

    @_lightning_module.setter
    def _lightning_module(self, module: Any) -> None:
        self.profiler._lightning_module = module  # type: ignore[attr-defined]

    def start(self, action_name: str) -> None:
        """Store when a fetch begins."""
        self.profiler.start(action_name)
        if action_name == FETCH:
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Add the time of a fetch."""
        if action_name == FETCH:
            self.seconds += time.perf_counter() - self._since
        self.profiler.stop(action_name)

    def setup(self, *arguments: Any, **named: Any) -> None:
        self.profiler.setup(*arguments, **named)

    def teardown(self, *arguments: Any, **named: Any) -> None:
        self.profiler.teardown(*arguments, **named)

    def describe(self) -> None:
        self.profiler.describe()

    def summary(self) -> str:
        return self.profiler.summary()


class TimeKeeper(pl.Callback):
    """Logs seconds per training step, waiting included, and the share of them spent waiting for data.

    `time/step` and `time/data_share` are of an epoch. `time/data_share_step` is in every row of steps that the loggers
    write, and covers the steps since the row before. A resumed run adds to the epoch's seconds so far.

    Args:
        wait: the trainer's profiler.
        log_every: the trainer's `log_every_n_steps`.
    """

    def __init__(self, wait: LoaderWait, log_every: int) -> None:
        self.wait = wait
        self._last = 0.0
        self._waited_before = 0.0
        self._epoch: list[tuple[float, float]] = []
        self._recent: deque[tuple[float, float]] = deque(maxlen=log_every)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of a resumed epoch."""
        self._waited_before, self._last = self.wait.seconds, time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self._epoch = []
        self._waited_before, self._last = self.wait.seconds, time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Record this step: the time since the last batch ended."""
        now = time.perf_counter()
        step = (self.wait.seconds - self._waited_before, now - self._last)
        self._waited_before, self._last = self.wait.seconds, now
        self._epoch.append(step)
        self._recent.append(step)
        pl_module.log("time/data_share_step", share_waited(self._recent), on_step=True, on_epoch=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch's mean time per step and its share of waiting."""
        if self._epoch:
            seconds = sum(total for _, total in self._epoch)
            pl_module.log("time/step", seconds / len(self._epoch), rank_zero_only=True)
            pl_module.log("time/data_share", share_waited(self._epoch), rank_zero_only=True, prog_bar=True)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": [list(step) for step in self._epoch]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._epoch = [(waited, seconds) for waited, seconds in state_dict["epoch"]]


def share_waited(steps: deque[tuple[float, float]] | list[tuple[float, float]]) -> float:
    """Return the share of time waited in steps given as (seconds waited, seconds in all); 0 if no time passed."""
    total = sum(seconds for _, seconds in steps)
    return sum(waited for waited, _ in steps) / total if total > 0 else 0.0
