"""Which weights of a run are kept: those of the best validation, and the latest to go on from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from e2enet.common.files import atomic_path
from e2enet.training.module import PATCHES, SCORES, WHOLE_CASES, SegmentationModule


def monitored(validate_full: int | None) -> str:
    """The score that chooses best.ckpt: of whole cases where a run validates them at all, else of patches.

    It is the same for the whole of a run, so that scores of patches and of whole cases are never compared.
    """
    return SCORES[WHOLE_CASES if validate_full else PATCHES]


def checkpoints(folder: Path, monitor: str, every: int) -> list[pl.Callback]:
    """Writers of best.ckpt (largest score `monitor`) and last.ckpt (every so many epochs), in this order: the
    latter stores the state of the former."""
    last = ModelCheckpoint(
        dirpath=folder,
        filename="last",
        every_n_epochs=every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return [BestCheckpoint(folder / "best.ckpt", monitor), last]


class WholeCheckpoints(TorchCheckpointIO):
    """Lets a checkpoint take its place only when it is complete, so that a killed run always has one to go on from.

    Lightning writes to the system's temporary folder and moves the file from there, which copies it where that folder
    is on another file system: a run killed meanwhile would be left with half of its only checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with atomic_path(path) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


class BestCheckpoint(Checkpoint):
    """Writes a checkpoint in every epoch whose score is the largest so far.

    Lightning's ModelCheckpoint expects its score in every epoch, or in every n-th; here it is measured in
    every n-th and in the last.

    Args:
        path: the file, written over by a better one.
        monitor: one of `SCORES`.
    """

    def __init__(self, path: Path, monitor: str) -> None:
        self.path = path
        self.monitor = monitor
        self.score = -math.inf

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare what this epoch's validation scored, if it did; NaN (no class in any case) is never best."""
        assert isinstance(pl_module, SegmentationModule)
        score = pl_module.scores.get(self.monitor, math.nan)
        if score > self.score:
            self.score = score
            trainer.save_checkpoint(self.path, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score = state_dict["score"]
