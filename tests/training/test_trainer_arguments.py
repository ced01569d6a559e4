"""Arguments of Lightning's Trainer, callbacks and schedules from a config, in runs of a few steps."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from e2enet.common.configs import compose_config
from e2enet.common.overrides import force_added
from e2enet.configuration.check import config_problems
from e2enet.data.formats.scheme import LabelScheme
from e2enet.training.loggers import last_logged
from e2enet.training.module import WHOLE_CASES, SegmentationModule
from e2enet.training.resume import resumed_config
from e2enet.training.run import run_training
from e2enet.training.trainer import SUPPLIED_TO_CALLBACKS, build_callbacks
from tests.training.conftest import SMALL_RUN, differences, numbers

STEPS = ["training.epochs=2", "training.steps_per_epoch=4", "training.validate_full=0", "trainer.probe=false"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("arguments")
    return [f"paths.data={root}/data", f"paths.prepared={root}/prepared", "data.num_workers=0"]


def train(folder: Path, places: list[str], *more: str) -> dict[str, Any]:
    config = compose_config(force_added([*SMALL_RUN, *STEPS, *places, *more, f"run_folder={folder}"]))
    assert config_problems(config) == []
    run_training(config, folder)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def resume(folder: Path, *more: str) -> dict[str, Any]:
    given = [f"resume={folder}", *more]
    run_training(resumed_config(compose_config(force_added(given)), given), folder)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_they_reach_the_trainer_and_its_steps(places: list[str], tmp_path: Path) -> None:
    given = ["trainer.limit_train_batches=0.5", "trainer.limit_val_batches=0.5", "trainer.profiler=simple"]
    given += ["trainer.gradient_clip_algorithm=value", "training.precision=64", "training.engine=dense"]
    stored = train(tmp_path / "run", places, *given)
    assert stored["global_step"] == 4  # half of each epoch's batches
    weights = [value for name, value in stored["state_dict"].items() if name.endswith("weight")]
    assert weights and {value.dtype for value in weights} == {torch.float64}
    assert "run_training_batch" in (tmp_path / "run" / "fit-profile.txt").read_text()
    assert last_logged(tmp_path / "run", "time/data_share") >= 0  # the package's own timing still works


def test_one_batch_of_everything(places: list[str], tmp_path: Path) -> None:
    config = compose_config([*SMALL_RUN, *STEPS, *places, "+trainer.fast_dev_run=true", f"run_folder={tmp_path}"])
    assert config_problems(config) == []
    run_training(config, tmp_path)
    assert last_logged(tmp_path, "train/loss") > 0


def test_a_time_that_is_up_ends_a_run_that_can_go_on(
    places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["trainer.max_time={seconds:1}", "training.epochs=1000", "training.validate_every=100"]
    stored = train(tmp_path / "run", places, *given)
    assert 0 < stored["global_step"] < 4000 and stored["global_step"] % 4 == 0  # whole epochs
    assert f"training ended after {stored['global_step']} of 4000 steps" in " ".join(capsys.readouterr().out.split())
    gone_on = resume(tmp_path / "run", "training.epochs=1000", "trainer.max_time={seconds:1}")
    assert gone_on["global_step"] >= stored["global_step"]


def test_a_schedule_that_follows_a_score(places: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        "schedule=plateau",
        "schedule.patience=0",
        "schedule.factor=0.5",
        "schedule.mode=min",
        "schedule.monitor=val/dice",
    ]
    # No change of Dice reaches the threshold, so every epoch but the first halves the rate.
    given += ["schedule.threshold=1.0", "schedule.threshold_mode=abs", "optimizer.lr=0.01"]
    whole = train(tmp_path / "whole", places, *given, "training.epochs=3")
    assert [group["lr"] for group in whole["optimizer_states"][0]["param_groups"]] == [0.0025]
    train(tmp_path / "parts", places, *given)
    parts = resume(tmp_path / "parts", "training.epochs=3")
    assert differences(parts["state_dict"], whole["state_dict"]) == []
    assert parts["lr_schedulers"] == whole["lr_schedulers"]

    def stop(module: SegmentationModule, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        if module.current_epoch == 1:
            signal.raise_signal(signal.SIGTERM)

    for hook in ("on_train_batch_start", "on_validation_batch_start"):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(SegmentationModule, hook, stop, raising=False)
            train(tmp_path / hook, places, *given, "training.epochs=3")
        stopped = resume(tmp_path / hook)
        assert differences(stopped["state_dict"], whole["state_dict"]) == [], hook
        assert stopped["lr_schedulers"] == whole["lr_schedulers"], hook


def test_early_stopping_ends_a_run_with_its_scores(places: list[str], tmp_path: Path) -> None:
    given = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=1e-30", "dsff=static"]
    stored = train(tmp_path, places, *given, "training.epochs=9")
    assert stored["global_step"] == 8  # after the second epoch, whose score was not better
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()


averaging = pytest.mark.skipif(
    not hasattr(pl.callbacks, "EMAWeightAveraging"), reason="this version of Lightning averages no weights: 2.6 does"
)


def test_an_older_lightning_averages_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pl.callbacks, "EMAWeightAveraging", raising=False)
    monkeypatch.delitem(sys.modules, "e2enet.training.weight_averaging", raising=False)
    monkeypatch.delattr("e2enet.training.weight_averaging", raising=False)
    (problem,) = config_problems(compose_config(["callbacks=weight_averaging"]))
    assert "cannot be imported: weight averaging needs Lightning 2.6 or later" in problem


@averaging
def test_an_average_of_weights_keeps_the_masks(places: list[str], tmp_path: Path) -> None:
    given = ["callbacks=weight_averaging", "callbacks.weight_averaging.decay=0.5", "dsff.update_every=3"]
    given += ["dsff.density=0.3", "training.engine=dense"]
    given += ["schedule=constant", "dsff.fraction_schedule=constant", "training.checkpoint_every=3"]
    whole = train(tmp_path / "whole", places, *given)
    best = torch.load(tmp_path / "whole" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    masks = {name.removesuffix("kernel_mask"): mask for name, mask in best.items() if name.endswith("kernel_mask")}
    assert masks
    for name, mask in masks.items():
        weight = best[f"{name}weight"]
        assert not weight[~mask].any() and weight[mask].any(), name
        assert 0 < float(mask.float().mean()) < 0.5
    plain = train(tmp_path / "plain", places, *given[2:])
    assert differences(plain["state_dict"], whole["state_dict"]) != []  # an average is saved

    train(tmp_path / "parts", places, *given, "training.epochs=1")
    parts = resume(tmp_path / "parts", "training.epochs=2")
    assert differences(parts["state_dict"], whole["state_dict"]) == []
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


@averaging
def test_lightnings_own_average_is_refused_beside_masks() -> None:
    target = "lightning.pytorch.callbacks.EMAWeightAveraging"
    problems = config_problems(compose_config([f"++callbacks.average={{_target_:{target}}}"]))
    assert problems == [
        f"callbacks.average: {target} averages masks too, which would let pruned kernels live; expected "
        "callbacks=weight_averaging, or dsff=dense"
    ]
    assert config_problems(compose_config([f"++callbacks.average={{_target_:{target}}}", "dsff=dense"])) == []


class Greedy(pl.Callback):
    """A callback with all the arguments that a run supplies."""

    def __init__(self, run_folder: Any, labels: Any, scheme: Any, plan: Any, loader: Any) -> None:
        self.given = {"run_folder": run_folder, "labels": labels, "scheme": scheme, "plan": plan, "loader": loader}


def test_what_the_check_takes_for_given_is_given(tmp_path: Path) -> None:
    module: Any = SimpleNamespace(scheme=LabelScheme({0: "background", 1: "liver"}), plan="plan")
    section = {"_target_": f"{__name__}.Greedy"}
    (callback,) = build_callbacks({"mine": section, "none": None}, module, tmp_path, validate_full=5)
    assert isinstance(callback, Greedy)
    names = {0: "background", 1: "liver"}
    expected = {"run_folder": tmp_path, "labels": names, "scheme": module.scheme, "plan": "plan", "loader": WHOLE_CASES}
    assert callback.given == expected and set(expected) == SUPPLIED_TO_CALLBACKS
