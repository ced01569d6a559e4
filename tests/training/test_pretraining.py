"""Weights and masks of one training start another: given by hand, or by a pretraining that can be resumed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf

from e2enet.common.configs import as_plain, compose_config
from e2enet.common.errors import InputError
from e2enet.configuration.check import config_problems
from e2enet.training.pretraining import pretraining_config
from e2enet.training.resume import resumed_config
from e2enet.training.run import run_training
from e2enet.training.run_folder import Claim

SOURCE = "pretraining=['data.name=source','data.phantom_seed=1','seed=3']"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a run of two steps on a phantom. One more key gives another phantom."""
    root = tmp_path_factory.mktemp("transfer_data")
    return [
        "data.num_train=5",
        "data.num_test=0",
        "data.shape=[40,40,16]",
        "augmentation=none",
        "plan.patch_size=[8,16,16]",
        "plan.strides=[[1,2,2],[2,2,2]]",
        "plan.batch_size=2",
        "network.base_features=4",
        "training.epochs=1",
        "training.steps_per_epoch=2",
        "training.validate_full=0",
        "trainer.accelerator=cpu",
        "final.predict=false",
        f"paths.data={root}/data",
        f"paths.prepared={root}/prepared",
    ]


@pytest.fixture(scope="module")
def source(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with masks of density 0.2, from which weights are taken."""
    return train([*tiny, "seed=3"], tmp_path_factory.mktemp("source") / "run")


def train(overrides: list[str], folder: Path) -> Path:
    run_training(compose_config([*overrides, f"run_folder={folder}"]), folder)
    return folder


def weights(folder: Path, name: str = "last") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def stored_plan(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]["plan"]


def masks(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.endswith("kernel_mask")}


def still(folder: Path) -> list[str]:
    """Return overrides of a run that keeps the weights of another unchanged."""
    frozen = ["optimizer.lr=1e-30", "optimizer.weight_decay=0", "dsff=static"]
    return [*frozen, f"initial_weights={folder}"]


def test_weights_and_masks_start_a_run(source: Path, tiny: list[str], tmp_path: Path) -> None:
    state = weights(train([*tiny, *still(source)], tmp_path / "run"))
    for name, value in weights(source, "best").items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-20)
    assert sum(int(mask.sum()) for mask in masks(state).values()) > 0
    assert not all(bool(mask.all()) for mask in masks(state).values())


def test_a_dense_run_makes_every_kernel_active(source: Path, tiny: list[str], tmp_path: Path) -> None:
    state = weights(train([*tiny, *still(source), "dsff=dense"], tmp_path / "run"))
    before = weights(source, "best")
    assert all(bool(mask.all()) for mask in masks(state).values())
    name = next(iter(masks(before))).replace("kernel_mask", "weight")
    torch.testing.assert_close(state[name], before[name], rtol=0, atol=1e-20)


def test_a_sparse_run_draws_masks_for_dense_weights(tiny: list[str], tmp_path: Path) -> None:
    dense = train([*tiny, "dsff=dense"], tmp_path / "dense")
    state = weights(train([*tiny, *still(dense), "dsff.density=0.25"], tmp_path / "run"))
    shares = [float(mask.float().mean()) for mask in masks(state).values()]
    assert shares == pytest.approx([0.25] * len(shares), abs=0.05)


def test_masks_that_moved_between_layers_are_taken_over(tiny: list[str], tmp_path: Path) -> None:
    over = ["dsff.prune_over=network", "dsff.prune_by=sensitivity", "dsff.update_every=1", "dsff.density_initial=0.6"]
    source = train([*tiny, *over], tmp_path / "source")
    held = [word for word in over if "density_initial" not in word]  # without updates no density falls
    state = weights(train([*tiny, *held, *still(source)], tmp_path / "run"))
    before = masks(weights(source))
    assert sum(mask.sum() for mask in before.values()) < 0.3 * sum(mask.numel() for mask in before.values())
    counts = {name: int(mask.sum()) for name, mask in before.items()}
    assert all(torch.equal(mask, before[name]) for name, mask in masks(state).items())
    assert len({count / before[name].numel() for name, count in counts.items()}) > 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["dsff.density=0.5"], r"have density 0\.\d+, \d+ active kernels in decoder.*dsff\.density=0\.5 means"),
        (["network.base_features=5"], r"do not fit this run's network:\n.*has shape \(4, 1, 1, 3, 3\)"),
        (["network.kernel_size=[3,3,3]"], "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(
    more: list[str], message: str, source: Path, tiny: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        train([*tiny, f"initial_weights={source}", *more], tmp_path / "run")
    assert str(source / "checkpoints" / "best.ckpt") in str(caught.value)


def test_wrong_keys_are_told_before_anything_starts(source: Path, tiny: list[str], tmp_path: Path) -> None:
    def problems(*more: str) -> str:
        return "\n".join(config_problems(compose_config([*tiny, *more])))

    assert problems(SOURCE) == ""
    assert problems(f"initial_weights={source}") == ""
    assert "initial_weights=nowhere: no such checkpoint" in problems("initial_weights=nowhere")
    other = tmp_path / "weights.pth"
    for content in ("", "no checkpoint"):
        other.write_text(content)
        assert f"initial_weights={other}: " in problems(f"initial_weights={other}")
    assert "expected null beside it" in problems(SOURCE, f"initial_weights={source}")
    wrong = problems("pretraining=['dsff=set','data=nope','training.epoch=3','seed']")
    assert "of the groups only data and augmentation can be chosen" in wrong
    assert "data=nope: no such choice" in wrong and "seed: expected key=value" in wrong
    unknown = problems("pretraining=['training.epoch=3','seed=-1']")
    assert "pretraining: training.epoch: unknown key; did you mean training.epochs?" in unknown
    assert "pretraining: seed=-1: expected a whole number from 0 to 4294967295" in unknown
    assert "pretraining: data.name: needs a value" in problems("pretraining=['data=msd']")


def test_the_pretraining_is_the_run_with_what_differs() -> None:
    given = ["data=amos_mri", "data.num_workers=7", "training.epochs=9", "dsff.density=0.3", "row=a"]
    given += ["final.compact=true"]
    config = compose_config([*given, "pretraining=['data=amos_ct','training.epochs=11']"])
    first = pretraining_config(config)
    assert first.data.modality == "CT" and first.data.num_workers == 2  # from the config file, not from the run
    assert first.training.epochs == 11 and first.dsff.density == 0.3
    assert first.pretraining is None and first.row is None
    assert first.final.predict is False and first.final.compact is False
    assert config.training.epochs == 9 and config.data.modality == "MRI"


def test_a_resumed_run_and_a_job_have_the_same_pretraining() -> None:
    data = ["data=msd", "data.name=Task04_Hippocampus", "pretraining=['data.name=Task07_Pancreas']"]
    config = compose_config([*data, "run_folder=here"])  # otherwise the folder's name holds the time
    stored = OmegaConf.create(as_plain(config))  # as read from config.yaml
    assert pretraining_config(config) == pretraining_config(stored)
    assert pretraining_config(config).data.name == "Task07_Pancreas"


def test_pretrained_on_one_phantom_and_trained_on_another(tiny: list[str], tmp_path: Path) -> None:
    run = train([*tiny, SOURCE, "dsff=static"], tmp_path / "run")
    first = OmegaConf.load(run / "pretraining" / "config.yaml")
    assert first.data.name == "source" and first.seed == 3 and first.run_folder == str(run / "pretraining")
    assert first.plan.strides == [[1, 2, 2], [2, 2, 2]] and first.plan.patch_size == [8, 16, 16]
    assert json.loads((run / "pretraining" / "finished.json").read_text())["dice"] >= 0
    # With static masks, the run ends with the masks of the first training.
    begun, ended = masks(weights(run / "pretraining", "best")), masks(weights(run))
    assert all(torch.equal(ended[name], mask) for name, mask in begun.items())
    drawn = masks(weights(train([*tiny, "dsff=static"], tmp_path / "alone")))
    assert not all(torch.equal(drawn[name], mask) for name, mask in begun.items())


def test_a_stopped_transfer_goes_on_to_the_same_end(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train([*tiny, SOURCE], tmp_path / "whole")
    folder = tmp_path / "stopped"

    def stop(trainer: pl.Trainer, *_: object, **__: object) -> None:
        next(callback for callback in trainer.callbacks if isinstance(callback, Claim)).take(trainer)
        raise KeyboardInterrupt("stopped; go on with it by resume=PRETRAINING")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=f"resume={folder}$"):
        patch.setattr("lightning.pytorch.Trainer.fit", stop)  # as the first training begins
        train([*tiny, SOURCE], folder)
    assert not (folder / "pretraining" / "finished.json").exists()
    given = [f"resume={folder}"]
    with monkeypatch.context() as patch, pytest.raises(InputError, match="after the first training"):
        patch.setattr("e2enet.training.run.load_initial_weights", fail)
        run_training(resumed_config(compose_config(given), given), folder)
    written = (folder / "pretraining" / "metrics.csv").stat().st_mtime_ns
    run_training(resumed_config(compose_config(given), given), folder)
    assert (folder / "pretraining" / "metrics.csv").stat().st_mtime_ns == written  # it was not trained again
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(folder)[name], value, rtol=0, atol=0)
    losses = [[row["train/loss"] for row in csv.DictReader((run / "metrics.csv").open())] for run in (whole, folder)]
    assert losses[0] == losses[1]


def fail(*_: object, **__: object) -> None:
    raise InputError("after the first training")


def test_shapes_are_compared_before_the_first_training(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="pretraining: its network has not the shape of the run's") as caught:
        train([*tiny, "pretraining=['data.name=source','data.phantom_seed=1','network.base_features=6']"], folder)
    assert "has shape (6, 1, 1, 3, 3), the network (4, 1, 1, 3, 3)" in str(caught.value)
    assert not (folder / "pretraining" / "checkpoints").exists()


def test_two_datasets_planned_apart_share_strides_and_patch(tiny: list[str], tmp_path: Path) -> None:
    planned = [text for text in tiny if not text.startswith("plan.strides")]
    # Slices are 1 mm apart, those of the run 3 mm: planned alone, the first network would halve the depth at once.
    source = "pretraining=['data.name=thin','data.spacing=[1,1,1]','plan.patch_size=[16,16,16]']"
    run = train([*planned, source], tmp_path / "run")
    strides = [stored_plan(folder)["strides"] for folder in (run, run / "pretraining")]
    assert strides[0] == strides[1] and strides[0][0] == [1, 2, 2]
    assert OmegaConf.load(run / "pretraining" / "config.yaml").plan.patch_size == [16, 16, 16]  # from its overrides
