"""A folder becomes a run's at its first step. Resuming changes nothing in it until new settings are known to work."""

from __future__ import annotations

import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.common.overrides import parse_override
from e2enet.configuration.check import check_command_line
from e2enet.sweeps.command_line import plan_sweep
from e2enet.sweeps.manifest import register_jobs
from e2enet.sweeps.records import record_start
from e2enet.training import run
from e2enet.training.module import SegmentationModule
from e2enet.training.resume import resumed_config
from e2enet.training.run import run_training
from e2enet.training.run_folder import with_own_folder
from tests.training.conftest import SMALL_RUN, differences, numbers


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("run_folders")
    own = [
        "data.num_test=0",
        "training.steps_per_epoch=3",
        "training.epochs=2",
        "training.validate_full=2",
        "data.num_workers=0",
    ]
    return [*SMALL_RUN, *own, "trainer.probe=false", f"paths.data={root}/data", f"paths.prepared={root}/prepared"]


@pytest.fixture(scope="module")
def finished(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    start(overrides, folder)
    return folder


def start(overrides: list[str], folder: Path) -> None:
    run_training(compose_config([*overrides, f"run_folder={folder}"]), folder)


def resume(folder: Path, *more: str) -> None:
    given = [f"resume={folder}", *more]
    run_training(resumed_config(compose_config(given), given), folder)


def content(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a folder, without locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def refuse(*_: object, **__: object) -> None:
    raise InputError("does not fit")


def stop(*_: object, **__: object) -> None:
    signal.raise_signal(signal.SIGINT)


def test_a_refused_start_leaves_its_folder_free(
    overrides: list[str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("load_initial_weights", "probe_step"):
        with monkeypatch.context() as patch, pytest.raises(InputError, match="does not fit"):
            patch.setattr(run, name, refuse)
            start([*overrides, "trainer.probe=true", f"initial_weights={finished}"], tmp_path)
        assert content(tmp_path) == {}
    with pytest.raises(InputError, match=r"config\.yaml: no such file .*its own command line starts it again"):
        resume(tmp_path)
    start([*overrides, "training.epochs=1"], tmp_path)
    with pytest.raises(InputError, match="holds a run already"):
        start(overrides, tmp_path)
    resume(tmp_path, "training.epochs=2")
    assert checkpoint(tmp_path)["global_step"] == 6


def test_a_refused_pretraining_leaves_both_folders_free(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transfer = [*overrides, "training.epochs=1", "pretraining=['seed=1']"]
    with monkeypatch.context() as patch, pytest.raises(InputError, match="does not fit"):
        patch.setattr(run, "probe_step", refuse)
        start([*transfer, "trainer.probe=true"], tmp_path)
    assert content(tmp_path) == {}

    def fail(*_: object) -> None:
        raise InputError("its first step")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="its first step"):
        patch.setattr(SegmentationModule, "training_step", fail)
        start(transfer, tmp_path)
    # Both runs have begun. Resuming the outer one resumes its pretraining first.
    assert {"config.yaml", "pretraining/config.yaml", "pretraining/versions.json"} <= set(content(tmp_path))
    resume(tmp_path)
    assert (tmp_path / "pretraining" / "finished.json").is_file() and checkpoint(tmp_path)["global_step"] == 3


@pytest.mark.parametrize(
    ("place", "advice"),
    [
        ("e2enet.training.run.probe_step", "stopped before the first step; the same command line starts it again"),
        ("e2enet.training.module.SegmentationModule.training_step", "stopped; go on with it by resume="),
    ],
    ids=["before", "in"],
)
def test_a_stopped_run_says_how_to_go_on(
    place: str, advice: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)  # Lightning ignores Ctrl-C from the first one on
    monkeypatch.setattr(place, stop)
    try:
        with pytest.raises(KeyboardInterrupt, match=advice):
            start([*overrides, "trainer.probe=true"], tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)


def test_fewer_epochs_than_are_done_are_refused_before_anything_changes(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = content(folder)
    with pytest.raises(InputError) as caught:
        resume(folder, "training.epochs=1")
    assert str(caught.value) == (
        f"training.epochs=1: {folder}/checkpoints/last.ckpt has 2 epochs of 2 behind it and is finished; expected 2 or "
        "more"
    )
    assert content(folder) == before
    resume(folder, "training.epochs=2")  # its own length: nothing is left to train
    assert differences(checkpoint(folder), checkpoint(finished)) == [] and numbers(folder) == numbers(finished)
    resume(folder, "training.epochs=3")
    assert checkpoint(folder)["global_step"] == 9 and [row["epoch"] for row in numbers(folder) if row["val/dice"]] == [
        *"012"
    ]


@pytest.mark.parametrize(
    ("hook", "place"),
    [("on_train_batch_start", (1, 1)), ("on_train_epoch_start", (1, 0))],
    ids=["in its second epoch", "after its first"],
)
def test_a_run_that_is_past_an_epoch_cannot_end_with_it(
    hook: str, place: tuple[int, int], overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(module: SegmentationModule, batch: Any = None, index: int = 0) -> None:
        if (module.current_epoch, index) == place:
            signal.raise_signal(signal.SIGTERM)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(SegmentationModule, hook, end)
        start([*overrides, "training.epochs=3"], folder)
    before = content(folder)
    with pytest.raises(InputError, match=r"has 1 epochs of 3 behind it and goes on from there; expected 2 or more"):
        resume(folder, "training.epochs=1")
    assert content(folder) == before and "checkpoints/best.ckpt" not in before  # whole cases: in the last epoch
    resume(folder, "training.epochs=2")
    assert checkpoint(folder)["global_step"] == 6 and (folder / "checkpoints" / "best.ckpt").is_file()


def test_settings_that_fail_late_change_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with (folder / "metrics.csv").open("a") as stream:
        stream.write("1,2")  # half a row, which resuming cuts off
    before = content(folder)
    for place in ("e2enet.training.run.probe_step", "lightning.pytorch.Trainer.fit"):
        with monkeypatch.context() as patch, pytest.raises(InputError, match="does not fit"):
            patch.setattr("e2enet.training.run.probe_step", lambda *_: None)
            patch.setattr(place, refuse)
            resume(folder, "training.epochs=3", "trainer.probe=true", "final.step=1")
    assert content(folder) == before


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = tmp_path / "2025-01-31_12-00-00"
    composed = OmegaConf.create({"hydra": {"run": {"dir": str(default)}}})
    monkeypatch.setattr("e2enet.training.run_folder.compose_config", lambda *_, **__: composed)
    with ThreadPoolExecutor(8) as threads:
        lines = list(threads.map(lambda _: with_own_folder(["seed=1"]), range(8)))
    folders = sorted(Path(parse_override(line[1]).value()) for line in lines)
    assert folders == sorted([default, *(tmp_path / f"{default.name}_{number}" for number in range(2, 9))])
    assert all(folder.is_dir() and line[0] == "seed=1" for folder, line in zip(folders, lines, strict=True))
    for named in ([f"run_folder={default}"], ["resume=there"], [f"hydra.run.dir={default}"]):
        assert with_own_folder(named) == named
    monkeypatch.setenv("LOCAL_RANK", "1")  # a process started by the first one with the same command line
    assert with_own_folder(["seed=1"]) == ["seed=1"] and len(list(tmp_path.iterdir())) == 8


def test_sweeps_and_runs_do_not_take_each_others_folders(finished: Path, tmp_path: Path) -> None:
    jobs = plan_sweep(["-m", "seed=0,1", f"run_folder={tmp_path}/sweep"]).jobs
    folders = register_jobs(tmp_path / "sweep", "test", jobs)
    before = content(finished)
    with pytest.raises(InputError, match="is the folder of a run; name another for this sweep"):
        register_jobs(finished, "test", jobs)
    assert content(finished) == before
    job = folders[jobs[0].key]
    record_start(job, jobs[0].key)
    expected = {
        tmp_path / "sweep": "is the folder of a sweep, with runs below it; name another for this run",
        job: "is the folder of a sweep's job; name another for this run",
        finished: f"holds a run already; go on with it by resume={finished}, or name another",
    }
    for folder, message in expected.items():
        with pytest.raises(InputError, match=re.escape(f"{folder}: {message}")):
            with_own_folder([f"run_folder={folder}"])
    assert with_own_folder([f"run_folder={tmp_path}/sweep/another"]) == [f"run_folder={tmp_path}/sweep/another"]
    with pytest.raises(InputError, match="is the folder of a sweep, which goes on by its own command line"):
        check_command_line([f"resume={tmp_path}/sweep"])


def test_a_known_key_that_the_chosen_files_lack_is_added(tmp_path: Path) -> None:
    given = ["data=phantom", "data.label_map={5:4}", "optimizer.fused=true", f"run_folder={tmp_path}/run"]
    assert with_own_folder(given) == given
