"""One tiny run from data to scores: the files in its folder, resuming, and W&B offline."""

from __future__ import annotations

import csv
import json
import signal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from omegaconf import OmegaConf

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.data.cases.split_file import read_run_split
from e2enet.inference.checkpoint import load_model
from e2enet.network.cost import count_cost
from e2enet.network.dsff import density
from e2enet.report.figures import draw_figures
from e2enet.training import callbacks
from e2enet.training.checkpoints import AtomicCheckpointIO
from e2enet.training.records import write_config, write_cost
from e2enet.training.resume import resumed_config
from e2enet.training.run import run_training


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("run_data")
    return [
        "data.num_train=5",
        "data.num_test=1",
        "data.shape=[40,40,16]",
        "plan.patch_size=[8,16,16]",
        "plan.strides=[[1,2,2],[2,2,2]]",
        "plan.batch_size=2",
        "network.base_features=4",
        "training.epochs=2",
        "training.steps_per_epoch=3",
        "training.validate_full=2",
        "schedule.interval=epoch",
        "dsff.update_every=2",
        "trainer.log_every_n_steps=2",
        "trainer.accelerator=cpu",
        "final.mirror=false",
        "final.predict=false",
        f"paths.data={root}/data",
        f"paths.prepared={root}/prepared",
    ]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("precision", ["64", "32-true"])
def test_a_run_in_another_precision_is_scored(precision: str, overrides: list[str], tmp_path: Path) -> None:
    given = ["training.epochs=1", "training.validate_full=1", f"training.precision={precision}", "final.predict=true"]
    result = run_training(compose_config([*overrides, *given, f"run_folder={tmp_path}/run"]), tmp_path / "run")
    assert result.dice is not None and 0 < result.dice < 1
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.parametrize("given", ["dsff.density_initial=0.6", "dsff.prune_over=network"])
def test_the_cost_is_that_of_the_network_that_was_scored(
    given: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(callbacks, "write_cost", lambda *given: drawn.append(write_cost(*given)))
    folder = tmp_path / "run"
    run_training(compose_config([*overrides, given, "dsff.update_every=1", f"run_folder={folder}"]), folder)
    network = load_model(folder / "checkpoints" / "best.ckpt").network
    scored = count_cost(network, [8, 16, 16])
    cost = json.loads((folder / "cost.json").read_text())
    assert cost["density"] == density(network)
    assert cost["exact"] == {"params": scored.params, "flops": scored.flops} != drawn[0]["exact"]


def test_the_run_folder_is_complete(overrides: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = compose_config([*overrides, "final.predict=true", f"run_folder={folder}"])
    result = run_training(config, folder)
    draw_figures(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert result.dice == summary["mean"]["dice"] and summary["n_cases"] == 1
    assert json.loads((folder / "test" / "summary.json").read_text())["n_cases"] == 1
    assert len(list((folder / "validation").glob("*.nii.gz"))) == 1
    stored = OmegaConf.load(folder / "config.yaml")
    assert stored.name == "phantom" and stored == OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    cost = json.loads((folder / "cost.json").read_text())
    assert cost["patch_size"] == [8, 16, 16] and cost["density"] == pytest.approx(0.2, abs=0.01)
    assert cost["exact"]["params"] == cost["paper"]["params"] and cost["exact"]["flops"] < cost["paper"]["flops"]
    flows = json.loads((folder / "connections.json").read_text())
    active, kernels = (sum(entry[name] for entry in flows) for name in ("active", "kernels"))
    assert active / kernels == cost["density"] and {entry["column"] for entry in flows} == {1, 2}
    kept = read_run_split(folder)
    assert kept is not None and (kept.folds, len(kept.train), len(kept.validation)) == (5, 4, 1)
    assert json.loads((folder / "versions.json").read_text())["packages"]["torch"] == version("torch")
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert {"learning_curves.png", "dsff.png"} <= figures and any(name.startswith("validation_") for name in figures)
    logged = {name for row in rows(folder) for name, cell in row.items() if cell}
    assert {
        "train/loss",
        "train/lr",
        "val/dice",
        "val/dice_cone_up",
        "val_full/dice",
        "val_full/dice_cone_up",
        "time/step",
        "time/data_share",
    } <= logged
    # Six steps with a row for every second. Patches are scored in both epochs, whole cases in the second.
    shares = [float(row["time/data_share_step"]) for row in rows(folder) if row["time/data_share_step"]]
    assert len(shares) == 3 and all(0 <= share <= 1 for share in shares)
    assert [row["epoch"] for row in rows(folder) if row["val/dice"]] == ["0", "1"]
    assert [row["epoch"] for row in rows(folder) if row["val_full/dice"]] == ["1"]
    assert {"dsff/density", "dsff/fraction", "dsff/churn", "dsff/ever_active", "dsff/share_up"} <= logged
    with pytest.raises(InputError, match="holds a run already"):
        run_training(config, folder)


def test_a_resumed_run_equals_an_uninterrupted_one(overrides: list[str], tmp_path: Path) -> None:
    def train(folder: Path, *more: str, resume: bool = False) -> dict[str, Any]:
        given = [*more, f"resume={folder}"] if resume else [*overrides, *more, f"run_folder={folder}"]
        config = compose_config(given)
        run_training(resumed_config(config, given) if resume else config, folder)
        return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)

    # The schedule must not depend on the length of the run, which the first half does not know.
    fixed = ["schedule._target_=e2enet.training.schedules.constant", "~schedule.warmup"]
    # Step 4 is the last step of neither run. An update at step 6, the shorter run's last, would be skipped.
    fixed += ["dsff.fraction_schedule=constant", "dsff.update_every=4"]
    whole = train(tmp_path / "whole", *fixed, "training.epochs=3")
    train(tmp_path / "halves", *fixed, "training.epochs=2")
    resumed = train(tmp_path / "halves", "training.epochs=3", resume=True)
    assert resumed["global_step"] == whole["global_step"] == 9
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, rtol=0, atol=0)
    for name in ("step", "train/loss", "train/lr", "val/dice", "val_full/dice", "dsff/churn"):
        assert [row[name] for row in rows(tmp_path / "halves")] == [row[name] for row in rows(tmp_path / "whole")]
    best = [
        torch.load(tmp_path / run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]
        for run in ("halves", "whole")
    ]
    assert best[0] == best[1]


def test_without_whole_cases_patches_choose_and_are_drawn(overrides: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run_training(compose_config([*overrides, "training.validate_full=0", f"run_folder={folder}"]), folder)
    scores = {int(row["epoch"]): float(row["val/dice"]) for row in rows(folder) if row["val/dice"]}
    assert "val_full/dice" not in rows(folder)[0] and result.dice == pytest.approx(scores[1])
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == max(scores, key=scores.__getitem__) + 1  # number of finished epochs
    assert len(list((folder / "figures").glob("validation_*.png"))) == 1


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = AtomicCheckpointIO.save_checkpoint

    def noted(self: AtomicCheckpointIO, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        written.append(Path(path).name)
        write(self, checkpoint, path, storage_options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", noted)
    config = compose_config([*overrides, "training.epochs=1", f"run_folder={tmp_path}"])
    write_config(tmp_path / "config.yaml", config)
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,1,9.0\n0,")  # a row that was being written
    given = [f"resume={tmp_path}"]
    run_training(resumed_config(compose_config(given), given), tmp_path)
    found = rows(tmp_path)
    assert "9.0" not in {row["train/loss"] for row in found} and [row["epoch"] for row in found if row["val/dice"]] == [
        "0"
    ]
    # Killed after training: nothing is trained again and no number is lost, even with half a row at the end.
    before = (tmp_path / "metrics.csv").read_text()
    (tmp_path / "metrics.csv").write_text(before + "0.1,0.2")
    run_training(resumed_config(compose_config(given), given), tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == before


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_stopped_run_says_so(
    number: signal.Signals,
    raised: type[BaseException],
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object) -> None:
        signal.raise_signal(number)

    before = signal.getsignal(signal.SIGINT)  # Lightning ignores Ctrl-C from the first one on
    monkeypatch.setattr("e2enet.training.module.SegmentationModule.on_train_batch_start", stop, raising=False)
    try:
        with pytest.raises(raised) as caught:
            run_training(compose_config([*overrides, f"run_folder={tmp_path}"]), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    if raised is SystemExit:
        assert caught.value.code == 143  # type: ignore[attr-defined]


def test_resume_refuses_another_config(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    OmegaConf.save(
        OmegaConf.create(OmegaConf.to_container(compose_config(overrides), resolve=True)),
        tmp_path / "config.yaml",
    )
    given = [f"resume={tmp_path}", "dsff.density=0.3", "network=unet", "training.epochs=9", "seed=0"]
    with pytest.raises(InputError) as caught:
        resumed_config(compose_config(given), given)
    assert "dsff.density=0.3: the run has 0.2" in str(caught.value)
    assert "network=" in str(caught.value) and "seed" not in str(caught.value)
    allowed = resumed_config(compose_config([given[0], given[3]]), [given[0], given[3]])
    assert allowed.training.epochs == 9 and allowed.training.steps_per_epoch == 3
    with pytest.raises(InputError, match=r"nowhere/config\.yaml: no such file"):
        resumed_config(compose_config(["resume=nowhere"]), [])


def test_wandb_offline_one_run_with_config_and_pictures(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for name in ("first", "second"):
        config = compose_config([*overrides, "logger=wandb", "training.epochs=1", f"run_folder={tmp_path / name}"])
        run_training(config, tmp_path / name)
        assert wandb.run is None
        folders = list((tmp_path / name / "wandb").glob("offline-run-*"))
        assert len(folders) == 1
        assert len(list(folders[0].rglob("*.png"))) == 1  # a picture of the whole case
        content = b"".join(path.read_bytes() for path in folders[0].glob("*.wandb"))
        assert b"density_by_dim0" in content and b"dsff/ever_active" in content
        assert folders[0].name.endswith(f"-{json.loads((tmp_path / name / 'loggers.json').read_text())['wandb']}")


def test_the_data_module_is_built_with_what_training_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def build(config: Any, **options: Any) -> None:
        given.update(options)
        raise InterruptedError

    monkeypatch.setattr("e2enet.training.parts.build_datamodule", build)
    values = {"accumulate": 3, "steps_per_epoch": 7, "validation_patches": 11, "validate_every": 2, "validate_full": 4}
    with pytest.raises(InterruptedError):
        run_training(compose_config([f"training.{key}={value}" for key, value in values.items()]), tmp_path / "run")
    assert given == values
