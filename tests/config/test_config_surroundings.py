"""Folders and logins that a config needs are looked at before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2enet.configuration import conflicts
from tests.config.conftest import problems


@pytest.mark.parametrize("key", ["paths.data", "paths.prepared", "paths.runs", "run_folder"])
def test_a_file_in_the_place_of_a_folder(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert problems(f"{key}={place}") == [f"{key}={place}: {tmp_path}/file is a file; a folder expected"]


@pytest.mark.parametrize("key", ["paths.prepared", "paths.runs", "run_folder"])
def test_a_folder_that_cannot_be_written_to(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    found = f"{key}={tmp_path}/new: {tmp_path} cannot be written to; the permission to write expected"
    assert problems(f"{key}={tmp_path}/new") == [found]


@pytest.mark.parametrize(("logged_in", "mode"), [(False, None), (True, None), (False, "offline")])
def test_online_needs_a_login_before_anything_starts(
    logged_in: bool, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    conflicts._login_problem.cache_clear()
    monkeypatch.setattr("wandb.login", lambda prompt: logged_in)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    expected = "logger.wandb.offline=false: this machine is not logged in to Weights & Biases; expected "
    expected += "logger.wandb.offline=true, "
    found = problems("logger=wandb logger.wandb.offline=false")
    assert found == ([] if logged_in or mode else [f"{expected}or `wandb login`"])
    conflicts._login_problem.cache_clear()
