"""nnU-Net's trainer of `benchmarks.accuracy`: another length, kept checkpoints, and the seconds of every epoch.

nnU-Net finds it through the environment variable nnUNet_extTrainer, and imports every module of this folder. Nothing of
e2enet is imported. The environment variable ACCURACY_TRAINING holds a JSON object: epochs, iterations_per_epoch, keep
(finished epochs whose checkpoints are kept), threads, seed. Data, augmentation, network, loss, optimizer and schedule
are nnU-Net's.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

SETTINGS = "ACCURACY_TRAINING"
SECONDS_FILE = "epoch_seconds.json"


class nnUNetTrainerMinutes(nnUNetTrainer):  # noqa: N801 - nnU-Net's trainers are all called so
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net stores the arguments by these names
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.settings: dict[str, Any] = json.loads(os.environ[SETTINGS])
        self.num_epochs = self.settings["epochs"]
        self.num_iterations_per_epoch = self.settings["iterations_per_epoch"]
        self.num_val_iterations_per_epoch = 1  # gives nnU-Net's pseudo Dice, which nothing here uses
        self.save_every = 1
        torch.set_num_threads(self.settings["threads"])  # nnUNetv2_train takes all cores
        self._since = 0.0

    def on_train_start(self) -> None:
        """Seed first: the weights are drawn here, and a resumed training must not draw the first epochs' numbers."""
        seed = 10_000 * self.settings["seed"] + self.current_epoch
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self._since = time.perf_counter()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """Add the seconds of the epoch's iterations, waiting for batches included, to a file."""
        seconds = time.perf_counter() - self._since
        super().on_train_epoch_end(train_outputs)
        path = Path(self.output_folder) / SECONDS_FILE
        found = json.loads(path.read_text()) if path.is_file() else {}
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(found | {str(self.current_epoch): seconds}))
        os.replace(temporary, path)

    def on_epoch_end(self) -> None:
        """Keep the checkpoints that are scored."""
        if self.current_epoch + 1 in self.settings["keep"]:
            self.save_checkpoint(os.path.join(self.output_folder, f"checkpoint_epoch_{self.current_epoch + 1:04d}.pth"))
        super().on_epoch_end()

    def save_checkpoint(self, filename: str) -> None:
        """Write it whole or not at all: nnU-Net resumes from half a file with an error."""
        super().save_checkpoint(f"{filename}.part")
        os.replace(f"{filename}.part", filename)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Leave it out: nnUNetv2_predict predicts the same cases from every checkpoint that is kept."""
