"""`e2enet nnunet`: the folder of the trainer, and plans."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from e2enet.nnunet import __main__ as command
from tests.nnunet.conftest import CONFIGURATION, NAME, NNUNet, environment


def test_trainers_prints_the_folder_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["trainers"])
    folder = Path(capsys.readouterr().out.rstrip("\n"))
    assert folder.is_dir() and (folder / "nnunet_trainer_e2enet.py").is_file()


def test_the_settings_of_dsff_are_those_of_train() -> None:
    assert command.compose_dsff([])["density"] == 0.2
    rigl = command.compose_dsff(["dsff=rigl", "dsff.density=0.1"])
    assert (rigl["growth"], rigl["density"], rigl["update_until"]) == ("gradient", 0.1, 0.75)
    assert "_target_" not in rigl and command.compose_dsff(["dsff=dense"])["enabled"] is False
    assert command.compose_dsff(["dsff.density_by_dim0={48:0.2}"])["density_by_dim0"] == {"48": 0.2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plans", "5", "density=0.1"], "density=0.1: dsff=NAME or dsff.KEY=VALUE expected"),
        (["plans", "5", "dsff=rigel"], "rigel"),
        (["plans", "5", "dsff.densitty=0.1"], "densitty"),
        (["plans", "5", "dsff.density=2"], "density=2: expected a share"),
        (["plans", "5", "--gpu-memory", "0"], "0: a number > 0 expected"),
        (["plans", "5", "--epochs", "many"], "invalid"),
        ([], "COMMAND"),
    ],
)
def test_wrong_calls_end_before_nnunet_is_imported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(command, "require_nnunet", lambda: pytest.fail("reached"))
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_without_nnunet_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['nnunetv2'] = None\nfrom e2enet.nnunet.__main__ import main; main(['plans', '5'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and 'pip install "e2enet[nnunet]" expected' in done.stderr


def test_help_answers_without_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\nfrom e2enet.nnunet.__main__ import main; main(['plans', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--gpu-memory GB" in done.stdout, done.stderr


def test_plans_are_for_e2enets_memory(nnunet: NNUNet) -> None:
    plans = json.loads(nnunet.plans.read_text())
    assert list(plans["configurations"]) == [CONFIGURATION]  # no 2d
    configuration = plans["configurations"][CONFIGURATION]
    architecture = configuration["architecture"]
    assert architecture["network_class_name"] == "e2enet.nnunet.adapter.E2ENetAdapter"
    arguments = architecture["arch_kwargs"]
    assert arguments["features_per_stage"] == [8, 16, 32, 64] and arguments["shift_size"] == 3
    assert set(map(tuple, arguments["kernel_sizes"])) == {(1, 3, 3)}
    assert arguments["strides"][0] == [1, 1, 1] and configuration["patch_size"] == [12, 32, 32]
    assert configuration["dsff"]["density"] == 0.3 and configuration["training"]["epochs"] == 3


def test_less_memory_gives_smaller_patches(nnunet: NNUNet, tmp_path: Path) -> None:
    """On a dataset of larger scans, of which there is the fingerprint alone."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    from e2enet.nnunet.plans import E2ENetPlanner

    fingerprint = nnunet.plans.parent / "dataset_fingerprint.json"
    before = fingerprint.read_text()
    content = json.loads(before)
    content["shapes_after_crop"] = [[160, 200, 200]] * 5
    content["spacings"] = [[1.0, 1.0, 1.0]] * 5
    found: dict[float, dict[str, Any]] = {}
    with environment(nnunet.variables(tmp_path)):
        try:
            fingerprint.write_text(json.dumps(content))
            for memory in (4.0, 16.0):
                found[memory] = _fullres(E2ENetPlanner(NAME, memory, f"plans_of_{memory:g}_gb"))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("nnUNet_n_proc_DA", "1")  # as many threads as nnU-Net plans by
                stock = _fullres(ExperimentPlanner(NAME, 16.0, plans_name="stock"))["patch_size"]
        finally:
            fingerprint.write_text(before)
    small, large = (_voxels(found[memory]["patch_size"]) for memory in (4.0, 16.0))
    assert small * 2 < large
    # E2ENet keeps about 4.5 times as much as nnU-Net's U-Net, on the same patch.
    assert 0.15 < large / _voxels(stock) < 0.7
    for configuration in found.values():
        strides = configuration["architecture"]["arch_kwargs"]["strides"]
        steps = [1, 1, 1]
        for stride in strides:
            steps = [one * step for one, step in zip(steps, stride, strict=True)]
        assert all(edge % step == 0 for edge, step in zip(configuration["patch_size"], steps, strict=True))


def _fullres(planner: Any) -> dict[str, Any]:
    planner.lowres_creation_threshold = 0  # no lower resolution, for which dozens are tried
    found: dict[str, Any] = planner.plan_experiment()["configurations"][CONFIGURATION]
    return found


def _voxels(patch: Any) -> int:
    depth, height, width = map(int, patch)
    return depth * height * width


def test_a_dataset_is_named_by_folder_name_or_number(
    nnunet: NNUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from e2enet.common.errors import InputError
    from e2enet.nnunet.plans import find_dataset

    with environment(nnunet.variables(nnunet.folder / "results")):
        for given in ("5", NAME, str(nnunet.dataset), str(nnunet.plans.parent)):
            assert find_dataset(given) == NAME
        with pytest.raises(InputError, match=f"7: one dataset of .* expected, by folder, name or number: {NAME}"):
            find_dataset("7")
        (elsewhere := tmp_path / NAME / "imagesTr").mkdir(parents=True)  # of the same name, and another dataset
        with pytest.raises(InputError, match=f"{elsewhere.parent}: nnUNet_raw is .*; a folder in it expected"):
            find_dataset(str(elsewhere.parent))
        monkeypatch.delenv("nnUNet_raw")
        assert find_dataset(str(nnunet.dataset)) == NAME
        monkeypatch.delenv("nnUNet_preprocessed")
        monkeypatch.delenv("nnUNet_raw")
        with pytest.raises(InputError, match=r"(?s)nnUNet_raw is not set.*nnUNet_preprocessed is not set"):
            find_dataset("5")


def test_the_command_writes_plans(nnunet: NNUNet, capsys: pytest.CaptureFixture[str]) -> None:
    with environment(nnunet.variables(nnunet.folder / "results")):
        command.main(
            ["plans", str(nnunet.dataset), "dsff=set", "--name", "mine", "--base-features", "8", "--epochs", "4"]
        )
    shown = capsys.readouterr().out
    assert "nnUNetv2_train 5 3d_fullres 0 -tr nnUNetTrainerE2ENet -p mine" in shown
    written = json.loads((nnunet.plans.parent / "mine.json").read_text())["configurations"][CONFIGURATION]
    assert written["dsff"]["fraction_schedule"] == "constant" and written["training"] == {"epochs": 4}
