"""A run resumes exactly from any of its checkpoints. Later results are moved to their own run folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.runs.folders import job_state
from e2enet.training.module import SegmentationModule
from e2enet.training.resume import resumed_config
from e2enet.training.run import run_training
from tests.training.conftest import SMALL_RUN, differences, numbers


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs of two steps. It keeps every second epoch, and the best epoch is not the last."""
    root = tmp_path_factory.mktemp("rewind")
    own = ["data.num_test=0", "data.num_workers=0", "training.epochs=4", "training.steps_per_epoch=2"]
    own += ["training.validate_full=0", "training.keep_every=2", "trainer.probe=false", "trainer.log_every_n_steps=1"]
    own += ["training.checkpoint_every=3", "schedule.interval=epoch", "dsff.update_every=3"]
    paths = [f"paths.data={root}/data", f"paths.prepared={root}/prepared", f"run_folder={root}/run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationModule, "training_step", dropped)
        end = SegmentationModule.on_validation_epoch_end

        def spoilt(module: SegmentationModule) -> None:
            end(module)
            module.scores["val/dice"] = [0.1, 0.4, 0.2, 0.3][module.current_epoch]

        patch.setattr(SegmentationModule, "on_validation_epoch_end", spoilt)
        run_training(compose_config([*SMALL_RUN, *own, *paths]), root / "run")
    return root / "run"


def dropped(
    module: SegmentationModule, batch: Any, index: int, loss_of: Any = SegmentationModule.training_step
) -> torch.Tensor:
    """Return a loss that depends on the generator from which dropout would draw."""
    loss: torch.Tensor = loss_of(module, batch, index) * (1 + torch.rand(()))
    return loss


def resume(path: Path, *more: str) -> None:
    given = [f"resume={path}", *more]
    config = resumed_config(compose_config(given), given)
    run_training(config, Path(config.run_folder))


def checkpoint(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_what_is_kept(whole: Path) -> None:
    names = sorted(path.stem for path in (whole / "checkpoints").iterdir())
    assert names == ["best", "epoch_0002", "epoch_0004", "last", "previous"]
    assert [checkpoint(whole, name)["global_step"] for name in names] == [4, 4, 8, 8, 6]


@pytest.mark.parametrize("name", ["epoch_0002", "best"])
def test_a_run_goes_on_exactly_from_an_earlier_checkpoint(
    name: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "summary.json").write_text("{}")
    chosen, aside = folder / "checkpoints" / f"{name}.ckpt", folder / "set_aside" / "from_step_4"
    monkeypatch.setattr(SegmentationModule, "training_step", dropped)
    resume(chosen)
    assert f"going on from {chosen}, step 4: what came after it is in {aside}" in capsys.readouterr().out
    assert differences(checkpoint(folder)["state_dict"], checkpoint(whole)["state_dict"]) == []
    assert differences(checkpoint(folder)["optimizer_states"], checkpoint(whole)["optimizer_states"]) == []
    for column in ("epoch", "step", "train/loss", "train/lr", "dsff/churn"):
        assert [row[column] for row in numbers(folder)] == [row[column] for row in numbers(whole)]
    assert not (folder / "summary.json").exists()  # that of the earlier end is gone
    # The run that was moved aside can be resumed, too.
    assert {path.name for path in aside.iterdir()} >= {"config.yaml", "metrics.csv", "summary.json", "versions.json"}
    assert numbers(aside) == numbers(whole) and differences(checkpoint(aside), checkpoint(whole)) == []
    resume(aside, "training.epochs=5")
    assert checkpoint(aside)["global_step"] == 10 and checkpoint(folder)["global_step"] == 8


def test_a_prolonged_run_has_no_scores_until_its_new_end(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed on its way, it would count as finished, with the scores of its first end."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "summary.json").write_text("{}")
    (folder / "validation").mkdir()
    resume(folder)  # nothing is left to train: they stay
    assert (folder / "summary.json").is_file() and job_state(folder).state == "finished"

    def fail(*_: object, **__: object) -> None:
        raise InputError("killed")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="killed"):
        patch.setattr(SegmentationModule, "training_step", fail)
        resume(folder, "training.epochs=5")
    assert job_state(folder).state == "interrupted"
    aside = folder / "set_aside" / "scores_of_step_8"
    assert sorted(path.name for path in aside.iterdir()) == ["summary.json", "validation"]
    resume(folder)
    assert checkpoint(folder)["global_step"] == 10 and not (folder / "summary.json").exists()


def test_a_run_that_is_killed_after_it_went_back_goes_on_from_there(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise InputError("killed")

    chosen = folder / "checkpoints" / "epoch_0002.ckpt"
    with monkeypatch.context() as patch, pytest.raises(InputError, match="killed"):
        patch.setattr("lightning.pytorch.Trainer.fit", fail)
        resume(chosen)
    assert {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == before
    with monkeypatch.context() as patch, pytest.raises(InputError, match="killed"):
        patch.setattr(SegmentationModule, "training_step", fail)
        resume(chosen)
    assert sorted(path.stem for path in (folder / "checkpoints").iterdir()) == ["best", "epoch_0002", "last"]
    assert checkpoint(folder)["global_step"] == 4
    resume(folder)
    assert checkpoint(folder)["global_step"] == 8 and (folder / "checkpoints" / "epoch_0004.ckpt").is_file()
    assert [path.name for path in (folder / "set_aside").iterdir()] == ["from_step_4"]
