"""e2enet predict in two processes: each case is predicted once, and the outcome of all is reported once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
import torch

from e2enet.inference.config import PredictConfig
from e2enet.inference.run import resolve_device, run_prediction
from e2enet.system.ranks import Launch, Team, is_rank_zero, launched


@pytest.fixture
def scans(tmp_path: Path, scan: nib.Nifti1Image) -> Path:
    """Folder with the cases a, b, c and d. b cannot be read."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for case in "acd":
        nib.save(scan, folder / f"{case}.nii.gz")
    (folder / "b.nii.gz").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("srun", marks=pytest.mark.slow)])
def test_cases_are_shared_and_reported_once(
    launcher: str, launch: Callable[..., Any], write_checkpoint: Callable[..., Path], scans: Path, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint()
    arguments = [f"checkpoint={checkpoint}", f"input={scans}", f"output={tmp_path}/two", "device=cpu"]
    result = launch(launcher, "predict", *arguments)
    # The second process had b, and the first one reports it after its own cases a and c.
    assert result.returncode == 1, result.stderr
    assert result.stdout.count("1 of 4 cases failed:") == 1 and result.stdout.count("  - b: ") == 1
    assert re.findall(r"^(\d)/(\d) (\w):", result.stdout, re.MULTILINE) == [("1", "2", "a"), ("2", "2", "c")]
    assert sorted(path.name for path in (tmp_path / "two").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz", "d.nii.gz"]
    assert run_prediction(PredictConfig((checkpoint,), scans, tmp_path / "one", device="cpu")).keys() == {"b"}
    for case in "acd":
        two, one = (nib.load(tmp_path / folder / f"{case}.nii.gz") for folder in ("two", "one"))
        assert (two.get_fdata() == one.get_fdata()).all()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Launch()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Launch(3, 8, 1, "torchrun")),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, Launch(1, 2, 1)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}, Launch(5, 8, 1, "srun")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_NAME": "bash"}, Launch()),
        # torchrun in a SLURM allocation; Lightning's second process, started from an interactive SLURM shell
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "RANK": "1", "WORLD_SIZE": "2"}, Launch(1, 2, 0, "torchrun")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, Launch(1, 2, 1)),
    ],
)
def test_who_this_process_is(variables: dict[str, str], expected: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected and is_rank_zero() == (expected.rank == 0)


def test_a_process_alone_has_every_item() -> None:
    assert Team().scatter("abc") == ["a", "b", "c"] and Team().gather(5) == [5]


@pytest.mark.parametrize(
    ("local_rank", "gpus", "expected"), [("1", 4, "cuda:1"), ("3", 2, "cuda:1"), ("1", 1, "cuda:0")]
)
def test_processes_take_turns_with_gpus(
    local_rank: str, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert str(resolve_device("auto")) == "cuda"
    for name, value in {"RANK": local_rank, "WORLD_SIZE": "8", "LOCAL_RANK": local_rank}.items():
        monkeypatch.setenv(name, value)
    assert str(resolve_device("auto")) == str(resolve_device("cuda")) == expected
    assert str(resolve_device("cuda:0")) == "cuda:0"
