"""Every file of conf/ and experiments/ composes, passes the check and opens with its command; some are run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from e2enet.common.configs import ROOT, compose_config, group_options
from e2enet.configuration.check import check_command_line, config_problems
from e2enet.training.run import run_training

FOLDERS = [folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir() and folder.name != "hydra"]
GROUPS = sorted([*FOLDERS, "experiments"])
FILES = [(group, option) for group in GROUPS for option in group_options(group)]
# Overrides that complete a choice, or let it run without a GPU.
COMPANIONS = {
    ("data", "msd"): ["data.name=Task01_BrainTumour"],
    ("data", "folders"): [
        "data.name=mine",
        "data.labels={0:background,1:organ}",
        "data.layout={image:'{case}.nii.gz',label:'{case}_seg.nii.gz',channels:[CT]}",
    ],
    ("data", "nnunet"): ["data.name=Dataset001_BrainTumour"],
    ("training", "paper"): ["training.precision=32"],
    ("trainer", "gpu"): ["trainer.accelerator=cpu"],
    ("trainer", "ddp"): ["trainer.accelerator=cpu"],
}


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to have a GPU and every package: the check also refuses what this machine cannot run."""
    monkeypatch.setattr("e2enet.configuration.conflicts.has_gpu", lambda: True)
    monkeypatch.setattr("e2enet.network.baselines.PLAIN_UNET_PACKAGE", "torch")
    monkeypatch.setattr("e2enet.configuration.conflicts.LOGGER_PACKAGES", {})
    monkeypatch.setattr("e2enet.configuration.conflicts.trainer_problem", lambda _: None)


@pytest.mark.parametrize(("group", "option"), FILES)
def test_composes_and_passes_the_check(group: str, option: str, able: None) -> None:
    if option == "weight_averaging" and not hasattr(pl.callbacks, "EMAWeightAveraging"):
        pytest.skip("this version of Lightning averages no weights: 2.6 does")
    config = compose_config([f"{group}={option}", *COMPANIONS.get((group, option), [])])
    assert config_problems(config) == []


@pytest.mark.parametrize(("group", "option"), FILES)
def test_opens_with_its_command(group: str, option: str) -> None:
    folder = ROOT if group == "experiments" else ROOT / "conf"
    lines = (folder / group / f"{option}.yaml").read_text().splitlines()
    comments = [line for line in lines[:2] if line.startswith("#") and "@package" not in line]
    assert re.search(r"e2enet(.commands.)? ?train ", comments[0]) and f"{group}={option}" in comments[0]


@pytest.mark.parametrize("name", group_options("experiments"))
def test_every_job_of_every_experiment_passes_the_check(name: str, able: None) -> None:
    check_command_line(["-m", f"experiments={name}"])


def run(overrides: list[str], folder: Path) -> dict[str, object]:
    config = compose_config([*overrides, f"run_folder={folder}"])
    assert config_problems(config) == []
    result = run_training(config, folder)
    assert 0 <= result.dice <= 1
    return torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["callbacks"]


@pytest.mark.parametrize(
    "choices",
    [
        ["dsff=rigl", "dsff.update_every=1"],
        ["dsff=dense", "training=paper"],
        ["network=e2enet_released", "dsff=static", "logger=csv"],
        ["network=unet", "training=hippocampus", "debug=one_batch"],
        ["debug=overfit_one_case", "experiments=sparsity", "dsff=set", "training.precision=bf16-mixed", "data=phantom"],
        ["network=dynunet", "plan.strides=[[1,2,2],[2,2,2],[1,2,2]]"],
    ],
    ids=" ".join,
)
def test_dry_run(choices: list[str], tiny: list[str], tmp_path: Path) -> None:
    run([*choices, *tiny], tmp_path / "run")


def test_a_mistake_in_a_sweep_stops_it_before_the_first_job(tiny: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "-m", *tiny, "dsff.density=0.1,7", "trainingg=small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    assert "dsff.density=7: expected" in done.stderr and "did you mean training?" in done.stderr
    assert "Traceback" not in done.stderr


def test_presets_win_over_the_primary_config() -> None:
    assert compose_config(["debug=overfit_one_case"]).fold == "all"
    assert compose_config(["debug=overfit_one_case"]).final.predict is False
    assert compose_config(["debug=one_batch"]).final.max_cases == 1
    assert compose_config(["debug=overfit_one_case", "fold=2"]).fold == 2
