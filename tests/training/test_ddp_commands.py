"""e2enet train in two processes with every launcher: one run folder, written once, and the same numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from e2enet.common.errors import InputError
from e2enet.configuration.check import check_command_line

OVERRIDES = [
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "data.num_train=5",
    "data.num_test=3",
    "data.shape=[32,32,12]",
    "plan.patch_size=[12,32,32]",
    "plan.strides=[[1,2,2],[2,2,2]]",
    "plan.batch_size=1",
    "network.base_features=4",
    "training.epochs=2",
    "training.steps_per_epoch=2",
    "training.validate_full=2",
    "training.validation_patches=2",
    "dsff.update_every=2",
    "trainer.log_every_n_steps=1",
    "final.mirror=false",
    "final.compact=true",
]
LAUNCHERS = ("torchrun", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lightning", "srun")))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ddp_commands")


@pytest.fixture(scope="module")
def train(root: Path, launch: Callable[..., Any]) -> Callable[[str], tuple[Path, str]]:
    """Return a function that trains once per launcher and returns the run folder and the output."""
    done: dict[str, tuple[Path, str]] = {}

    def run(launcher: str) -> tuple[Path, str]:
        if launcher not in done:
            folders = [f"paths.data={root}/data", f"paths.prepared={root}/prepared", f"run_folder={root}/{launcher}"]
            result = launch(launcher, "train", *OVERRIDES, *folders)
            assert result.returncode == 0, result.stderr
            done[launcher] = (root / launcher, result.stdout)
        return done[launcher]

    return run


def measured(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without times."""
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return [{name: cell for name, cell in row.items() if not name.startswith("time/")} for row in rows]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_run_is_written_once(launcher: str, train: Callable[[str], tuple[Path, str]]) -> None:
    folder, printed = train(launcher)
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "connections.json",
        "cost.json",
        "figures",
        "metrics.csv",
        "probe.json",
        "scores.csv",
        "split.json",
        "summary.json",
        "test",
        "train.log",
        "validation",
        "versions.json",
    ]
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "compact.ckpt", "last.ckpt"}
    assert json.loads((folder / "summary.json").read_text())["n_cases"] == 1
    assert json.loads((folder / "test" / "summary.json").read_text())["n_cases"] == 3
    assert len(list((folder / "test").glob("*.nii.gz"))) == 3
    for line in ("epoch 1/2:", "epoch 2/2:", f"run folder: {folder}", "Test cases"):
        assert printed.count(line) == 1
    # The first process predicts two of three test cases.
    assert "1/2 phantom_006" in printed and "2/2 phantom_008" in printed and "phantom_007:" not in printed


@pytest.mark.parametrize("launcher", LAUNCHERS[1:])
def test_whoever_starts_the_processes(launcher: str, train: Callable[[str], tuple[Path, str]]) -> None:
    folders = [train(name)[0] for name in ("torchrun", launcher)]
    first, second = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in folders)
    assert all(torch.equal(second["state_dict"][name], value) for name, value in first["state_dict"].items())
    assert measured(folders[0]) == measured(folders[1]) and len(measured(folders[0])) > 4
    assert (folders[0] / "scores.csv").read_text() == (folders[1] / "scores.csv").read_text()


@pytest.mark.parametrize(
    ("variables", "arguments", "message"),
    [
        (
            {"RANK": "1", "WORLD_SIZE": "3"},
            ["trainer=ddp", "run_folder=r"],
            "trainer.devices=2, trainer.num_nodes=1: 2 process(es), but torchrun started 3",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["run_folder=r"], "1 process(es), but torchrun started 2"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, ["run_folder=r"], "1 process(es), but srun started 2"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, ["run_folder=r"], None),  # in a batch script without srun
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"}, [], None),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["trainer=ddp"], "run_folder: each process would name it by its own clock"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["trainer=ddp", "run_folder=r"], None),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, ["trainer=ddp"], None),  # Lightning's second, which gets the folder
    ],
)
def test_processes_that_do_not_fit_the_config_are_refused(
    variables: dict[str, str], arguments: list[str], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if message is None:
        check_command_line([*arguments, "trainer.accelerator=cpu"])
        return
    with pytest.raises(InputError) as caught:
        check_command_line([*arguments, "trainer.accelerator=cpu"])
    assert message in str(caught.value)
