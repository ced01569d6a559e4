"""metrics.csv: rows are on disk at once, and are cut back if a run resumes from an earlier step. W&B's id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from e2enet.common.files import write_json
from e2enet.training.loggers import IDS_FILE, SUPPLIED, MetricsFile, build_loggers, read_whole_rows, wandb_id


def fill(folder: Path) -> MetricsFile:
    logger = MetricsFile(folder)
    logger.log_metrics({"b": 0.1, "epoch": 0}, step=0)
    logger.log_metrics({"b": 1e-12, "epoch": 0}, step=1)
    logger.log_metrics({"a": 3.5, "epoch": 0}, step=1)  # a new column
    return logger


def test_every_row_is_in_the_file_when_it_is_written(tmp_path: Path) -> None:
    logger = fill(tmp_path)
    expected = [
        {"a": "", "b": "0.1", "epoch": "0", "step": "0"},
        {"a": "", "b": "1e-12", "epoch": "0", "step": "1"},
        {"a": "3.5", "b": "", "epoch": "0", "step": "1"},
    ]
    assert read_whole_rows(tmp_path / "metrics.csv") == expected and logger.rows == 3
    logger.log_metrics({"b": 2.0, "epoch": 1}, step=2)
    assert read_whole_rows(tmp_path / "metrics.csv")[3] == {"a": "", "b": "2.0", "epoch": "1", "step": "2"}


def test_a_new_column_never_leaves_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = fill(tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    monkeypatch.setattr("e2enet.common.files.os.replace", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        logger.log_metrics({"c": 1.0}, step=2)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_later_rows_and_half_a_row_are_cut_off(tmp_path: Path) -> None:
    fill(tmp_path)
    whole = (tmp_path / "metrics.csv").read_bytes()
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write(",0.5,1")
    damaged = (tmp_path / "metrics.csv").read_bytes()
    logger = MetricsFile(tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == damaged  # unchanged until the run resumes
    logger.keep(3)
    assert (tmp_path / "metrics.csv").read_bytes() == whole and logger.rows == 3
    logger = MetricsFile(tmp_path)
    logger.keep(2)
    logger.log_metrics({"a": 3.5, "epoch": 0}, step=1)
    assert (tmp_path / "metrics.csv").read_bytes() == whole
    MetricsFile(tmp_path).keep(0)
    assert not (tmp_path / "metrics.csv").exists()


def test_rows_that_are_lost_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path)
    logger = MetricsFile(tmp_path)
    logger.keep(5)
    assert logger.rows == 3
    assert capsys.readouterr().out == f"warning: {tmp_path}/metrics.csv: 3 rows, expected 5; the others are lost\n"


def test_the_id_at_wandb_is_the_runs_and_not_its_places(tmp_path: Path) -> None:
    folder, moved = tmp_path / "run", tmp_path / "moved"
    first, second = (wandb_id(folder, "wandb", goes_on=False) for _ in range(2))
    assert first != second and len(first) == 12
    folder.mkdir()
    write_json(folder / IDS_FILE, {"wandb": first})
    folder.rename(moved)
    assert wandb_id(moved, "wandb", goes_on=True) == first
    assert wandb_id(moved, "wandb", goes_on=False) != first  # a new run in the folder of an old one
    (moved / IDS_FILE).unlink()  # a run of an earlier version has only W&B's folders
    for name in ("offline-run-20250131_120000-0123456789ab", "run-20250201_120000-abcdef012345"):
        (moved / "wandb" / name).mkdir(parents=True)
    assert wandb_id(moved, "wandb", goes_on=True) == "abcdef012345"


class Greedy(Logger):
    """A logger with all the arguments that a run supplies."""

    def __init__(self, save_dir: Any, name: Any, version: Any, run_name: Any, run_id: Any = "") -> None:
        super().__init__()
        self.given = {"save_dir": save_dir, "name": name, "version": version, "run_name": run_name, "run_id": run_id}

    name = version = None  # type: ignore[assignment]

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, *_: Any, **__: Any) -> None: ...


def test_what_the_check_takes_for_given_is_given(tmp_path: Path) -> None:
    """Only W&B gets the others: id, resume and config."""
    write_json(tmp_path / IDS_FILE, {"mine": "abc"})
    section = {"_target_": f"{__name__}.Greedy"}
    logger = build_loggers({"mine": section, "none": None}, tmp_path, goes_on=True, config={})[1]
    assert isinstance(logger, Greedy)
    expected = {"save_dir": tmp_path, "name": "mine", "version": "", "run_name": tmp_path.name, "run_id": "abc"}
    assert logger.given == expected and set(expected) | {"id", "resume", "config"} == SUPPLIED
