"""docs/extending.md in practice: its example files in a user's folder, trained, resumed, swept and predicted."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import pytest
import torch
from omegaconf import OmegaConf

from e2enet.common.configs import ROOT, ConfigSource, choose_source, compose_config, group_options
from e2enet.common.errors import InputError
from e2enet.configuration.check import check_command_line, config_problems
from e2enet.data.synthetic.phantom import write_phantom
from e2enet.inference.checkpoint import load_model
from e2enet.inference.config import read_config
from e2enet.inference.run import find_layouts, run_prediction
from e2enet.network import build
from e2enet.training.loggers import last_logged
from e2enet.training.resume import resumed_config
from e2enet.training.run import run_training

DOCUMENT = ROOT / "docs" / "extending.md"
QUICK = (
    *("data.num_train=5", "data.num_test=1", "data.shape=[40,40,16]", "data.num_workers=0"),
    *("plan.patch_size=[8,16,16]", "plan.strides=[[1,2,2],[2,2,2]]", "plan.batch_size=2"),
    *("training.epochs=1", "training.steps_per_epoch=2", "training.validation_patches=2", "training.validate_full=0"),
    *("trainer.accelerator=cpu", "trainer.probe=false", "trainer.log_every_n_steps=1", "final.predict=false"),
    *("dsff=dense",),
)
NETWORK = "my_parts.MyNetwork"
OWN = (
    "network=mine",
    "data=mine",
    "augmentation=mine",
    "callbacks=mine",
    "logger=mine",
    "optimizer=mine",
    "schedule=steps",
    "loss=dice_focal",
)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the page describes. Several blocks of one file are joined in order."""
    root = tmp_path_factory.mktemp("own")
    blocks = re.findall(r"```(?:python|yaml)\n# (mine/\S+)\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    for name, text in blocks:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text)
    (root / "mine/conf/local/default.yaml").unlink()  # it names another data folder
    assert len(blocks) == 18
    return root / "mine"


@pytest.fixture(autouse=True)
def chosen(mine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Find configs and classes as `PYTHONPATH=mine python train.py --config-dir mine/conf` does."""
    monkeypatch.syspath_prepend(str(mine))
    choose_source(ConfigSource(added=mine / "conf"))
    yield
    choose_source(ConfigSource())


def paths(root: Path) -> list[str]:
    return [f"paths.data={root}/data", f"paths.prepared={root}/prepared", f"paths.runs={root}/runs"]


def test_own_files_are_choices_beside_ours(mine: Path) -> None:
    assert {"mine", "segresnet", "e2enet"} <= set(group_options("network"))
    config = compose_config(["network=mine", "callbacks=mine"])
    assert config.network == {"_target_": "my_parts.MyNetwork", "width": 12}
    assert list(config.callbacks) == ["validation_picture", "count_steps", "early_stopping"]
    choose_source(ConfigSource(searchpath=f"hydra.searchpath=[file://{mine}/conf]"))
    assert compose_config(["network=segresnet"]).network.init_filters == 8


def test_a_launchers_workers_look_there_too() -> None:
    code = "from e2enet.common.configs import compose_config; print(compose_config(['network=mine']).network.width)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "12\n"


def test_a_primary_config_of_ones_own(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "first.yaml").write_text("defaults:\n  - config\n  - _self_\nseed: 5\n", encoding="utf-8")
    choose_source(ConfigSource(name="first", added=tmp_path))
    assert (compose_config().seed, compose_config(["experiments=sparsity"]).ablation.title) == (5, "Sparsity level")


def test_settings_of_this_machine_come_last(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    content = "# @package _global_\npaths:\n  data: /elsewhere\ntrainer:\n  enable_progress_bar: false\n"
    (tmp_path / "local" / "default.yaml").write_text(content, encoding="utf-8")
    choose_source(ConfigSource(added=tmp_path))
    config = compose_config(["experiments=sparsity"])
    assert config.paths.data == "/elsewhere" and config.trainer.enable_progress_bar is False
    assert compose_config(["paths.data=here"]).paths.data == "here"


def test_mistakes_in_own_parts_are_told_with_ours() -> None:
    given = ["network=mine", "dsff=dense", "network.widht=3", "callbacks=mine", "optimizer=mine", "optimizer.lr=fast"]
    given += ["++callbacks.count_steps.nam=x", "++logger.diary._target_=my_parts.Dairy", "dsff.densty=0.1"]
    with pytest.raises(InputError) as caught:
        check_command_line(given)
    text = str(caught.value)
    assert "network.widht: unknown key; did you mean network.width?" in text
    assert "optimizer.lr=fast: expected a number" in text
    assert "callbacks.count_steps.nam: unknown key; did you mean callbacks.count_steps.name?" in text
    assert "logger.diary._target_: my_parts.Dairy cannot be imported" in text
    assert "dsff.densty: unknown key; did you mean dsff.density?" in text


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["network=mine", "dsff=dsff"], "dsff.enabled=true: my_parts.MyNetwork has no fusion layers to mask"),
        (["network=segresnet", "network.init_filters=7"], "network monai.networks.nets.SegResNet: "),
        (
            ["network=mine", "network._target_=my_parts.CountSteps"],
            "network._target_=my_parts.CountSteps: expected a class of torch.nn",
        ),
        (["network=mine", "network.in_channels=3"], "network.in_channels: unknown key"),
    ],
)
def test_networks_that_cannot_be(more: list[str], problem: str) -> None:
    problems = config_problems(compose_config(["dsff=dense", *(f"++{text}" if "." in text else text for text in more)]))
    assert any(problem in text for text in problems), problems


@pytest.mark.parametrize("choice", ["network=segresnet", "schedule=steps", "loss=dice_focal", "hparams_search=rates"])
def test_the_other_files_of_the_page_can_be_used(choice: str) -> None:
    assert config_problems(compose_config(["dsff=dense", choice])) == []


def test_the_commands_of_the_page(mine: Path) -> None:
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if "--config-dir mine/conf" in line]
    assert len(lines) == 2
    for line in lines:
        check_command_line([word for word in line.split()[2:] if word not in ("--config-dir", "mine/conf")])


def test_trained_resumed_and_predicted(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places, run = paths(tmp_path), tmp_path / "run"
    config = compose_config([*QUICK, *OWN, *places, f"run_folder={run}"])
    assert config_problems(config) == []
    run_training(config, run)
    assert len((run / "diary.txt").read_text().splitlines()) >= 1
    assert last_logged(run, "mine/steps") == 2
    with pytest.raises(
        InputError, match=r"optimized_metric=val/dicee: .* has logged no such value; expected .*val/dice"
    ):
        last_logged(run, "val/dicee")

    choose_source(ConfigSource())  # resuming needs the classes alone, not the configs
    given = [f"resume={run}", "training.epochs=2"]
    run_training(resumed_config(compose_config(given), given), run)
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["callbacks"]["CountSteps"] == {"steps": 4} and stored["global_step"] == 4
    assert stored["hyper_parameters"]["network"] == {"_target_": "my_parts.MyNetwork", "width": 12}

    whole = tmp_path / "whole"
    choose_source(ConfigSource(added=mine / "conf"))
    run_training(compose_config([*QUICK, *OWN, *places, "training.epochs=2", f"run_folder={whole}"]), whole)
    other = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    for name, weight in other["state_dict"].items():
        assert torch.equal(weight, stored["state_dict"][name]), name

    image = next((tmp_path / "data").glob("*/imagesTs/*.nii.gz"))
    settings = {"checkpoint": str(run), "input": str(image), "output": str(tmp_path / "out"), "mirror": False}
    monkeypatch.setattr(build, "_trusted", {*build.NAMES.values()})  # as in a process that has not trained
    with pytest.raises(InputError, match=r"is no network of e2enet, .* trust=\[my_parts\.MyNetwork\]"):
        run_prediction(read_config(settings))
    assert run_prediction(read_config({**settings, "trust": ["my_parts.MyNetwork"]})) == {}
    assert nib.load(tmp_path / "out" / image.name).shape == nib.load(image).shape  # type: ignore[attr-defined]


def test_a_dataset_laid_out_ones_own_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The dataset is trained on, and predicted in its own layout, which the checkpoint stores."""
    phantom = write_phantom(tmp_path / "phantom", num_train=5, num_test=0, shape=(32, 32, 16))
    for number, image in enumerate(sorted((phantom / "imagesTr").iterdir())):
        folder = tmp_path / "data" / "visits" / f"p{number}"
        folder.mkdir(parents=True)
        image.rename(folder / "visit1_ct.nii.gz")
        (phantom / "labelsTr" / image.name).rename(folder / "visit1_mask.nii.gz")
        (folder / "overview.nii.gz").touch()
    quick = [text for text in QUICK if not text.startswith(("data.num_t", "data.shape"))]
    run = tmp_path / "run"
    given = [*quick, "data=visits", "network=mine", *paths(tmp_path), f"run_folder={run}"]
    check_command_line(given)
    run_training(compose_config(given), run)
    settings = {"checkpoint": str(run), "output": str(tmp_path / "out"), "mirror": False, "trust": [NETWORK]}
    assert run_prediction(read_config({**settings, "input": str(tmp_path / "data" / "visits")})) == {}
    assert "visits: laid out as the training data, 5 cases" in " ".join(capsys.readouterr().out.split())
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [f"p{n}_1.nii.gz" for n in range(5)]
    model = replace(load_model(run), layout={"_target_": "my_parts.MyLayout"})
    assert find_layouts([model, model], []) == []
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("its layout, my_parts.MyLayout, is none of e2enet") == 1 and "told apart by their names" in told


def test_searched_from_the_command_line(mine: Path, tmp_path: Path) -> None:
    """A sweep from the command line.

    Its job is a separate process, which finds the user's classes by PYTHONPATH and reports to Optuna the value that
    the callback has logged.
    """
    command = [sys.executable, str(ROOT / "train.py"), "-m", "--config-dir", str(mine / "conf"), *QUICK, *OWN]
    command += ["hparams_search=rates", "hydra.sweeper.n_trials=1", "optimized_metric=mine/steps"]
    command += ["network.width=6", *paths(tmp_path), "name=own"]
    search = f"{mine}:{ROOT}"
    environment = {"PYTHONPATH": search, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = [path.parent for path in (tmp_path / "runs" / "own").glob("*/metrics.csv")]
    assert "1 finished" in done.stdout
    found = OmegaConf.load(folder.parent / "optimization_results.yaml")
    rate = OmegaConf.load(folder / "config.yaml").optimizer.lr
    assert found.best_value == last_logged(folder, "mine/steps") == 2
    assert found.best_params == {"optimizer.lr": rate} and 0.0003 <= rate <= 0.03


def test_a_job_pretrains_on_own_data(mine: Path, tmp_path: Path) -> None:
    """The job's command line names no `--config-dir`: it inherits the folder from its sweep."""
    command = [sys.executable, str(ROOT / "train.py"), "-m", "--config-dir", str(mine / "conf"), *QUICK, "data=mine"]
    command += ["pretraining=['data=mine','data.phantom_seed=1']", *paths(tmp_path), "name=own", "seed=0"]
    environment = {"PYTHONPATH": f"{mine}:{ROOT}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "1 finished" in done.stdout, done.stdout + done.stderr
    assert len([*(tmp_path / "runs" / "own").glob("*/pretraining/finished.json")]) == 1
