"""Runs that get a stop signal write a checkpoint first, at any point, and end like an uninterrupted run."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from e2enet.commands.train import run
from e2enet.common.configs import ROOT, compose_config
from e2enet.training.module import SegmentationModule
from e2enet.training.resume import find_checkpoint, resumed_config
from e2enet.training.run import run_training
from e2enet.training.stopping import StopSignals, is_restarted, requeue, requeued_at_once
from tests.training.conftest import SMALL_RUN, differences, numbers

SCONTROL = """#!/bin/sh
echo "$@" >> {log}
exit {code}
"""


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("stopped_runs")
    own = ["training.epochs=2", "training.steps_per_epoch=3", "training.validate_full=1", "trainer.log_every_n_steps=1"]
    paths = [f"paths.data={root}/data", f"paths.prepared={root}/prepared"]
    return [*SMALL_RUN, *own, *paths, "dsff.update_every=2"]


@pytest.fixture(scope="module")
def whole(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_training(compose_config([*overrides, f"run_folder={folder}"]), folder)
    return folder


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def train_batch(module: SegmentationModule, batch: Any, index: int) -> None:
    if (module.current_epoch, index) == (1, 1):
        signal.raise_signal(signal.SIGTERM)


def validation_batch(module: SegmentationModule, batch: Any, index: int, dataloader_idx: int = 0) -> None:
    if (module.current_epoch, dataloader_idx) == (1, 1):
        signal.raise_signal(signal.SIGTERM)


def epoch(module: SegmentationModule) -> None:
    if module.current_epoch == 1:
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("hook", "stop", "steps"),
    [
        ("on_train_batch_start", train_batch, 5),  # it finishes the current step
        ("on_validation_batch_start", validation_batch, 6),
        ("on_train_epoch_start", epoch, 3),  # an epoch that has not begun
    ],
)
def test_a_run_stopped_anywhere_ends_as_the_one_that_was_not(
    hook: str,
    stop: Callable[..., None],
    steps: int,
    overrides: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler, folder = signal.getsignal(signal.SIGTERM), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(SegmentationModule, hook, stop)
        with pytest.raises(SystemExit) as caught:
            run_training(compose_config([*overrides, f"run_folder={folder}"]), folder)
    assert caught.value.code == 143 and signal.getsignal(signal.SIGTERM) is handler
    found = find_checkpoint(folder)
    assert found is not None and found.path.name == "last.ckpt" and found.state.step == steps
    given = [f"resume={folder}"]
    result = run_training(resumed_config(compose_config(given), given), folder)
    assert differences(checkpoint(folder), checkpoint(whole)) == [] and numbers(folder) == numbers(whole)
    # Resumed again with nothing left to train, the run still knows its score.
    again = run_training(resumed_config(compose_config(given), given), folder)
    assert again.dice == result.dice == float(numbers(whole)[-2]["val_full/dice"])


@pytest.mark.slow
def test_slurm_announces_the_end_and_the_job_goes_on_in_its_next_one(
    overrides: list[str], whole: Path, tmp_path: Path
) -> None:
    program, log, folder = tmp_path / "scontrol", tmp_path / "scontrol.log", tmp_path / "run"
    program.write_text(SCONTROL.format(log=log, code=0))
    program.chmod(stat.S_IRWXU)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_ID": "71", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "2"}
    script = str(ROOT / "train.py")
    command = [sys.executable, script, *overrides, "data.num_workers=1", f"run_folder={folder}"]
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith("epoch 1/2"):
            os.killpg(job.pid, signal.SIGUSR1)  # SLURM signals all processes of a job, loader workers too
            break
    output = job.stdout.read()
    job.stdout.close()
    assert job.wait() == 143 and "stopped by SIGUSR1 after step" in output
    assert log.read_text().split() == ["requeue", "70_2"]
    restarted = environment | {"SLURM_RESTART_COUNT": "1"}
    result = subprocess.run(command, env=restarted, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "epoch 1/2" not in result.stdout and numbers(folder) == numbers(whole)


@pytest.mark.parametrize("place", ["preparation", "prediction"])
def test_slurm_announces_the_end_outside_of_training(
    place: str,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    program, log, folder = tmp_path / "scontrol", tmp_path / "scontrol.log", tmp_path / "run"
    program.write_text(SCONTROL.format(log=log, code=0))
    program.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)

    def unheard(number: int, frame: FrameType | None) -> None:
        raise AssertionError("not listened to")

    before = signal.signal(signal.SIGUSR1, unheard)

    def announced(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGUSR1)
        raise AssertionError("goes on")

    target = {"preparation": "e2enet.data.datamodule.SegmentationDataModule.prepare_data"}
    monkeypatch.setattr(target.get(place, "e2enet.training.final.predict_cases"), announced)
    short = ["training.epochs=1", "training.steps_per_epoch=1", "final.predict=true", f"run_folder={folder}"]
    try:
        with pytest.raises(SystemExit) as caught:
            run(compose_config([*overrides, *short]), folder)
        assert caught.value.code == 143 and signal.getsignal(signal.SIGUSR1) is unheard
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert log.read_text().split() == ["requeue", "7"]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "stopped by SIGUSR1 outside of training",
        "SLURM job 7 is queued again",
    ]


def test_what_a_launcher_ignores_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    stop = StopSignals()
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        stop.listen()
        signal.raise_signal(signal.SIGUSR1)
        assert stop.received is None
        with requeued_at_once():
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        stop.leave()
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_job_that_is_not_queued_again_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    requeue()
    program = tmp_path / "scontrol"
    program.write_text("#!/bin/sh\necho Access denied >&2\nexit 1\n")
    program.chmod(stat.S_IRWXU)
    requeue()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("warning: SLURM job 7 was not queued again: ") and "scontrol" in first
    assert second == "warning: SLURM job 7 was not queued again: Access denied"


def test_a_restart_is_known_by_its_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    assert not is_restarted()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert is_restarted()
