"""A tiny dataset in nnU-Net's folders, planned for E2ENet and preprocessed by nnU-Net's own code."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

NAME, PLANS, CONFIGURATION = "Dataset005_Prostate", "nnUNetE2ENetPlans", "3d_fullres"
REASON = "nnU-Net v2 is not installed (pip install e2enet[nnunet])"
# nnU-Net then augments in this process, and needs no others.
ALONE = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
DSFF = {"density": 0.3, "update_every": 2, "growth": "gradient", "fraction_initial": 0.3}
LENGTH = {"epochs": 3, "iterations_per_epoch": 3, "validation_iterations_per_epoch": 1}


@dataclass(frozen=True)
class NNUNet:
    """nnU-Net's folders, with one dataset that is ready to be trained on."""

    folder: Path

    @property
    def dataset(self) -> Path:
        return self.folder / "raw" / NAME

    @property
    def plans(self) -> Path:
        return self.folder / "preprocessed" / NAME / f"{PLANS}.json"

    def variables(self, results: Path, trainers: Path | None = None) -> dict[str, str]:
        """The environment of nnU-Net; results go to a folder of their own."""
        found = {
            "nnUNet_raw": str(self.folder / "raw"),
            "nnUNet_preprocessed": str(self.folder / "preprocessed"),
            "nnUNet_results": str(results),
        }
        return found | ALONE | ({} if trainers is None else {"nnUNet_extTrainer": str(trainers)})

    def trainer(self, *, fold: int = 0, resume: bool = False, configuration: dict[str, Any] | None = None) -> Any:
        """nnU-Net's trainer of E2ENet, found and made as nnUNetv2_train does; for the environment of now."""
        from nnunetv2.run.run_training import maybe_load_checkpoint
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        plans = json.loads(self.plans.read_text()) | {"continue_training": resume}
        plans["configurations"][CONFIGURATION] |= configuration or {}
        dataset = json.loads((self.dataset / "dataset.json").read_text())
        trainer = recursive_find_trainer_class_by_name("nnUNetTrainerE2ENet")(
            plans=plans, configuration=CONFIGURATION, fold=fold, dataset_json=dataset, device=torch.device("cpu")
        )
        trainer.save_every = 1
        maybe_load_checkpoint(trainer, resume, False)
        return trainer


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("nnUNet_extTrainer", raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture(scope="session")
def nnunet(tmp_path_factory: pytest.TempPathFactory) -> NNUNet:
    """The look-alike of a prostate MRI in two channels, its files in several orientations."""
    pytest.importorskip("nnunetv2", reason=REASON)
    from e2enet.data.synthetic.lookalikes import write_nnunet
    from e2enet.nnunet.plans import plan_dataset

    ready = NNUNet(tmp_path_factory.mktemp("nnunet"))
    write_nnunet(ready.dataset)
    with environment(ready.variables(ready.folder / "results")):
        from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

        written = plan_dataset(str(ready.dataset), base_features=8, dsff=DSFF, training=LENGTH)
        assert written == ready.plans
        preprocess_dataset(5, PLANS, (CONFIGURATION,), [1], show_progress_bar=False)
    return ready


@pytest.fixture(scope="session")
def trained(nnunet: NNUNet) -> Path:
    """The model folder of a training that nothing interrupted."""
    from e2enet.nnunet import trainers

    results = nnunet.folder / "uninterrupted"
    with environment(nnunet.variables(results, Path(os.path.abspath(trainers.__path__[0])))):
        seed_everything(7)
        nnunet.trainer().run_training()
    return results / NAME / f"nnUNetTrainerE2ENet__{PLANS}__{CONFIGURATION}"
