"""train.py from the command line: paths become absolute, and Ctrl-C works at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from e2enet.commands import train
from e2enet.common.configs import PATHS, ROOT, compose_config, make_paths_absolute

STARTS_AGAIN = "stopped before the first step; the same command line starts it again"


def test_paths_are_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    config = compose_config(["paths.data='~/data'", "run_folder='~/runs/a'", "initial_weights=../old", "paths.runs=/r"])
    make_paths_absolute(config)
    found = {key: OmegaConf.select(config, key) for key in PATHS}
    assert found == {
        "paths.data": f"{tmp_path}/home/data",
        "paths.prepared": f"{tmp_path}/prepared",
        "paths.runs": "/r",
        "run_folder": f"{tmp_path}/home/runs/a",
        "resume": None,
        "initial_weights": f"{tmp_path.parent}/old",
        "data.split": None,
    }
    OmegaConf.update(config, "data.split", "here/splits_final.json", force_add=True)
    make_paths_absolute(config)
    assert OmegaConf.select(config, "data.split") == f"{tmp_path}/here/splits_final.json"


def test_remarks_of_other_packages_are_not_printed() -> None:
    """Hydra's root logger prints INFO by default: what optuna and alembic say when MONAI imports them, say."""
    config = compose_config(with_hydra=True)
    assert config.hydra.job_logging.root.level == "WARNING"
    assert config.hydra.job_logging.root.handlers == ["console", "file"]


@pytest.mark.slow
def test_a_run_keeps_its_paths_wherever_it_is_gone_on_with(tiny: list[str], tmp_path: Path) -> None:
    """Relative and home paths are given to the program itself. No folder is called ~."""
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    own = [text for text in tiny if not text.startswith("paths.")]
    given = [*own, "paths.data=raw", "paths.prepared='~/prepared'", "run_folder='~/a=b/run'", "final.predict=false"]
    environment = os.environ | {"HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py"), *given, "trainer.probe=false"]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = home / "a=b" / "run"
    config = OmegaConf.load(run / "config.yaml")
    assert (config.paths.data, config.paths.prepared) == (f"{work}/raw", f"{home}/prepared")
    assert config.run_folder == str(run) and (work / "raw").is_dir() and (home / "prepared").is_dir()
    assert not [*tmp_path.rglob("*~*")]


def test_help_lists_the_groups_and_no_other_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    groups = done.stdout.partition("== Configuration groups ==")[2].partition("== Config ==")[0]
    listed = [line.partition(": ")[0] for line in groups.splitlines() if ": " in line]
    folders = [path.parent for path in (ROOT / "conf").rglob("*.yaml") if path.parent != ROOT / "conf"]
    own = {folder.relative_to(ROOT / "conf").as_posix() for folder in folders} - {"hydra/launcher"}
    assert set(listed) == own | {"experiments"}


@pytest.mark.parametrize("command", ["train.py", "predict.py"])
def test_ctrl_c_while_modules_are_loaded(command: str, tmp_path: Path) -> None:
    (tmp_path / "hydra.py").write_text("raise KeyboardInterrupt")
    places = f"{tmp_path}{os.pathsep}{ROOT}"
    done = subprocess.run(
        [sys.executable, ROOT / command],
        env=os.environ | {"PYTHONPATH": places},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (130, "stopped; nothing was begun\n")


def test_ctrl_c_before_training(tiny: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *tiny, f"paths.data={tmp_path}/data", "data.num_train=300"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # the phantom is being generated
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: pool processes get the signal too
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and errors.splitlines() == [STARTS_AGAIN]


@pytest.mark.parametrize(
    ("said", "begun", "told"),
    [
        ((), False, STARTS_AGAIN),
        ((), True, "stopped; go on with it by resume={}"),
        (("stopped while pretraining; x",), True, "stopped while pretraining; x"),
    ],
)
def test_ctrl_c_in_a_run(
    said: tuple[str, ...], begun: bool, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        if begun:
            (tmp_path / "config.yaml").touch()
        raise KeyboardInterrupt(*said)

    monkeypatch.setattr("e2enet.training.run.run_training", stopped)
    monkeypatch.setattr("e2enet.system.memory.keep_freed_memory", lambda: None)
    with pytest.raises(KeyboardInterrupt) as caught:
        train.run(compose_config(), tmp_path)
    assert str(caught.value) == told.format(tmp_path)
