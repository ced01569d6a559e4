"""The five commands on one dataset, with the arguments a user would type but in this process."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.configs import compose_config
from e2enet.common.overrides import force_added, quoted
from e2enet.configuration.check import check_command_line
from e2enet.data.check import main as check
from e2enet.data.prepare import main as prepare
from e2enet.evaluation.__main__ import main as evaluate
from e2enet.inference.config import read_config
from e2enet.inference.run import run_prediction
from e2enet.training.run import run_training

# A network of four channels and two steps: the tests check that all commands fit together.
QUICK = (
    "network.base_features=4",
    "network.max_features=8",
    "plan.batch_size=2",
    "training.epochs=1",
    "training.steps_per_epoch=2",
    "training.validation_patches=2",
    "trainer.accelerator=cpu",
    "data.num_workers=0",
    "final.mirror=false",
    "training.engine=dense",  # `auto` may choose differently in train.py and predict.py, which changes rounding
)

COMPARED = ("dice", "nsd", "hd95", "outcome")
Rows = dict[tuple[str, str], dict[str, str]]


@dataclass(frozen=True)
class Tour:
    """Output of the five commands: a run folder, prepared cases, predictions and two sets of scores.

    `scores` are the rows of the evaluation by (case, class), `trained` those of train.py's own validation.
    """

    run: Path
    prepared: Path
    predictions: Path
    summary: dict[str, Any]
    scores: Rows
    trained: Rows

    def assert_agreement(self, case_of: Callable[[str], str] = lambda case: case) -> None:
        """Assert that predict.py and the evaluation give train.py's final scores for each case.

        `case_of` maps a case of the dataset to its name in the evaluation.
        """
        assert self.trained
        for (case, label), row in self.trained.items():
            again = self.scores[case_of(case), label]
            assert {name: row[name] for name in COMPARED} == {name: again[name] for name in COMPARED}

    def assert_grid(self, case: str, scan: Path) -> None:
        """Assert that a prediction has its scan's grid and an integer type."""
        written, read = nib.load(self.predictions / f"{case}.nii.gz"), nib.load(scan)
        assert written.shape == read.shape[:3]
        np.testing.assert_allclose(written.affine, read.affine, atol=1e-3)
        assert np.issubdtype(written.get_data_dtype(), np.integer)


@pytest.fixture
def take_tour(tmp_path: Path) -> Callable[..., Tour]:
    """Return a function that checks, prepares, trains, predicts and evaluates.

    `dataset` holds the overrides that name the dataset, `scans` is the input of predict.py. `labels` holds the
    arguments of the evaluation, starting with the folder of references. All output goes to `within`, the run to
    its subfolder `runs`.
    """

    def tour(
        dataset: Sequence[str],
        scans: Path,
        labels: Sequence[str],
        *more: str,
        within: Path = tmp_path,
        runs: str = "runs",
    ) -> Tour:
        run, predictions, prepared = (within / name for name in (f"{runs}/run", "predictions", "prepared"))
        shared = [*dataset, *QUICK, *more, f"paths.prepared={quoted(str(prepared))}"]
        assert not check([*dataset, f"report={tmp_path / 'health.json'}"])
        assert all(entry["severity"] == "warning" for entry in json.loads((tmp_path / "health.json").read_text()))
        assert not prepare(shared)
        arguments = [*shared, f"run_folder={quoted(str(run))}"]
        check_command_line(arguments)
        run_training(compose_config(force_added(arguments)), run)
        settings = {"checkpoint": str(run), "input": str(scans), "output": str(predictions)}
        assert run_prediction(read_config({**settings, "mirror": False, "device": "cpu", "engine": "dense"})) == {}
        evaluate([str(predictions), *labels])
        return Tour(
            run,
            prepared,
            predictions,
            json.loads((predictions / "summary.json").read_text()),
            read_scores(predictions / "scores.csv"),
            read_scores(run / "scores.csv"),
        )

    return tour


def read_scores(path: Path) -> Rows:
    with path.open(newline="") as stream:
        return {(row["case"], row["class"]): row for row in csv.DictReader(stream)}
