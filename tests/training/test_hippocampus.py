"""A short run on real scans: 20 labelled hippocampus cases, 150 steps (two to three minutes on two cores)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2enet.common.configs import compose_config
from e2enet.training.run import run_training


@pytest.mark.slow
def test_twenty_labelled_cases_are_enough_to_find_the_hippocampus(shared_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = compose_config(
        [
            "training=hippocampus",
            "data=msd",
            "data.name=Task04_Hippocampus",
            f"paths.data={shared_data}",
            f"paths.prepared={tmp_path}/prepared",
            f"run_folder={run}",
            "data.limit_cases=20",
            "training.epochs=3",
            "training.validate_every=3",
            "trainer.accelerator=cpu",
        ]
    )
    result = run_training(config, run)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["n_cases"] == 40  # the whole fold, whatever the number of training cases
    assert result.dice >= 0.6
    assert {entry["name"] for entry in summary["classes"].values()} == {"Anterior", "Posterior"}
    assert sum(entry["missed"] for entry in summary["classes"].values()) <= 4
