"""Checkpoints of a run: the best validation, those requested, and the last two to resume from."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from e2enet.common.console import say
from e2enet.common.files import atomic_path, sync_to_disk
from e2enet.training.dsff_callback import mask_callbacks
from e2enet.training.loggers import metrics_file
from e2enet.training.module import PATCHES, SCORES, WHOLE_CASES, SegmentationModule
from e2enet.training.run_state import RunState, generator_states, set_generator_states
from e2enet.training.stopping import StopSignals, requeue

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"


def monitored(validate_full: int | None) -> str:
    """Return the score that selects best.ckpt: of whole cases if the run validates any, else of patches.

    It is the same for the whole run, so scores of patches and of whole cases are never compared.
    """
    return SCORES[WHOLE_CASES if validate_full else PATCHES]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Renames a checkpoint into place only when it is complete and on disk; last.ckpt becomes previous.ckpt.

    Lightning writes to the system's temporary folder and moves the file from there. If that folder is on another file
    system, the move is a copy: a run killed meanwhile would have half of its only checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        with atomic_path(path) as temporary:
            with temporary.open("wb") as stream:  # with a path, torch would store the temporary name in the file
                _save(checkpoint, stream)
            sync_to_disk(temporary)
            if path.name == LAST and path.is_file():
                os.replace(path, path.with_name(PREVIOUS))
        sync_to_disk(path.parent)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint on the CPU; pickled objects are refused, whatever this version of Lightning asks for."""
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return content


def _save(checkpoint: Mapping[str, Any], stream: BinaryIO) -> None:
    try:
        torch.save(checkpoint, stream)
    except RuntimeError as error:
        # After a failed write torch's writer still closes its archive, and raises an error of its own.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


class BestCheckpoint(Checkpoint):
    """Writes a checkpoint after every epoch with the largest score so far.

    Scores count once the masks have the density of the run's end (`dsff.density_initial`).

    Lightning's ModelCheckpoint expects its score in every epoch or in every n-th. Here it is measured in every n-th and
    in the last. The checkpoint is written when the next epoch begins or training ends: a run can resume exactly from
    there. `latest` is the score of the latest validation, NaN before the first.

    Args:
        path: the file; a better checkpoint overwrites it.
        monitor: one of `SCORES`.
    """

    def __init__(self, path: Path, monitor: str) -> None:
        self.path = path
        self.monitor = monitor
        self.score = -math.inf
        self.latest = math.nan
        self._due = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset a score without checkpoint: a run resumed from an earlier step has had its best.ckpt set aside."""
        if self.score > -math.inf and not trainer.strategy.broadcast(self.path.is_file()):
            self.score = -math.inf

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._write_if_due(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write_if_due(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare this epoch's score, if it has one; NaN (no class in any case) is never best."""
        assert isinstance(pl_module, SegmentationModule)
        self.latest = pl_module.scores.get(self.monitor, self.latest)
        score = pl_module.scores.get(self.monitor, math.nan)
        if score > self.score and not _is_denser_than_at_the_end(trainer, pl_module):
            self.score, self._due = score, True

    def _write_if_due(self, trainer: pl.Trainer) -> None:
        if self._due:
            self._due = False
            trainer.save_checkpoint(self.path, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.latest = state_dict["score"], state_dict["latest"]


def _is_denser_than_at_the_end(trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
    return any(callback.excess(pl_module) > 0 for callback in mask_callbacks(trainer))


class KeptCheckpoints(Checkpoint):
    """Keeps a checkpoint of every `every`-th epoch (epoch_0010.ckpt, ..) beside the others.

    It is written when the next epoch begins or training ends, like best.ckpt.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder
        self.every = every
        self._kept = 0  # finished epochs at the latest write

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do not write the checkpoint that the run was resumed from again."""
        self._kept = trainer.current_epoch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write before the first batch of an epoch."""
        if batch_idx == 0:
            self._keep(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._keep(trainer)

    def _keep(self, trainer: pl.Trainer) -> None:
        epochs = trainer.current_epoch
        if epochs != self._kept and epochs % self.every == 0:
            self._kept = epochs
            trainer.save_checkpoint(self.folder / f"epoch_{epochs:04d}.ckpt", weights_only=False)


class LastCheckpoint(Checkpoint):
    """Writes last.ckpt at regular intervals, at the end of training and at a stop signal.

    It is always written between two steps, when no gradients are being accumulated: before a batch, or before the
    validation after an epoch's last batch. A run resumed from there equals one that was never stopped.

    Args:
        path: the file. The one before it is kept beside it as previous.ckpt.
        every: steps or epochs between two writes: a killed run loses no more than that.
        unit: "steps" (optimizer steps) or "epochs".
        identity: dotted key -> value that may not change in a resumed run.
    """

    def __init__(self, path: Path, every: int, unit: str, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.every = every
        self.unit = unit
        self.identity = dict(identity)
        self.stop = StopSignals()
        self._period = every
        self._saved = -1  # step of the latest write
        self._restored: Mapping[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Convert `every` to steps; listen for stop signals from now on."""
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        self._period = self.every * (steps if self.unit == "epochs" else 1)
        self.stop.listen()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write if it is time, unless gradients of a step are being accumulated."""
        self._restore_generators()
        self._before_validation = None
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._write_if_due(trainer, told=self.stop.received_by_any(trainer))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write if it is time: the validation may take longer than all the steps before it."""
        self._restore_generators()
        self._before_validation = generator_states()
        self._write_if_due(trainer, told=self.stop.received_by_any(trainer))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Stop within a validation after a stop signal: a resumed run starts the validation again.

        Several processes finish it instead: they validate different numbers of cases and cannot communicate here.
        """
        if trainer.world_size == 1:
            self._write_if_due(trainer, told=self.stop.received is not None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the end of training, from which a prolonged run can resume."""
        self._before_validation = None
        self._write(trainer)
        self.stop.leave()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.stop.leave()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the state that Lightning's checkpoint lacks."""
        generators = self._before_validation if trainer.validating else None
        rows = metrics_file(trainer).rows
        state = RunState(trainer.global_step, rows, generators or generator_states(), self.identity)
        state.write_to(checkpoint, validating=trainer.validating)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = RunState.read_from(checkpoint)
        self._saved, self._restored = state.step, state.generators

    def _restore_generators(self) -> None:
        # Restore only now: starting the loaders draws from the generators, and the states were saved after that.
        if self._restored is not None:
            set_generator_states(self._restored)
            self._restored = None

    def _write_if_due(self, trainer: pl.Trainer, told: bool) -> None:
        step = trainer.global_step
        if told or (step % self._period == 0 and step not in (0, self._saved)):
            self._write(trainer)
        if told:
            self._end(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        metrics_file(trainer).sync()
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved = trainer.global_step

    def _end(self, trainer: pl.Trainer) -> None:
        """Leave training by Lightning's own exception; requeue the job if SLURM announced its time limit."""
        announced = self.stop.received_by_any(trainer, signal.SIGUSR1)
        if trainer.is_global_zero:
            name = "SIGUSR1" if announced else "SIGTERM"
            say(f"stopped by {name} after step {trainer.global_step}, which is in {self.path}")
            if announced:
                requeue()
        raise SIGTERMException
