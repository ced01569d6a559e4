"""Where a run's numbers go: metrics.csv in the run folder always, Weights & Biases by a key."""

from __future__ import annotations

import csv
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from e2enet.common.configs import as_plain
from e2enet.common.console import say
from e2enet.common.files import naming_unwritable, read_json, sync_to_disk, write_csv, write_json

METRICS_FILE = "metrics.csv"
WANDB_FILE = "wandb.json"  # the id of the run at W&B


def build_loggers(config: DictConfig, run_folder: Path, *, goes_on: bool) -> list[Logger]:
    """The loggers of one job, which goes on with the run in the folder or is a new one."""
    loggers: list[Logger] = [MetricsFile(run_folder)]
    if config.logger.wandb:
        loggers.append(_wandb_logger(config, run_folder, goes_on))
    return loggers


def wandb_id(run_folder: Path, *, goes_on: bool) -> str:
    """The id of a run at W&B: drawn once, and kept in the run folder wherever that is moved.

    A run of an earlier version has no file of it, but W&B's own folder, whose runs end in their id. A run that does
    not go on is a new one, whatever lay in its place before.
    """
    if goes_on and (run_folder / WANDB_FILE).is_file():
        return str(read_json(run_folder / WANDB_FILE)["id"])
    begun = sorted((run_folder / "wandb").glob("*run-*-*"), key=lambda path: path.name.partition("run-")[2])
    if goes_on and begun:
        return begun[-1].name.rpartition("-")[2]
    return uuid.uuid4().hex[:12]  # not of a generator that the run's seed has set


def keep_wandb_id(trainer: pl.Trainer, run_folder: Path) -> None:
    """Write the id of a run that has begun, where it is at W&B at all."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            write_json(run_folder / WANDB_FILE, {"id": logger.version})


def finish_wandb() -> None:
    """End the job's W&B run, or the next job of this process would write into it."""
    import wandb

    if wandb.run is not None:
        wandb.finish()


def metrics_file(trainer: pl.Trainer) -> MetricsFile:
    """The one of a run's trainer."""
    return next(logger for logger in trainer.loggers if isinstance(logger, MetricsFile))


class MetricsFile(Logger):
    """metrics.csv: a line per write, which is in the file when the write returns and stays there.

    Lightning's CSVLogger writes the whole file anew, in place, whenever a number comes for the first time: a run that
    is killed meanwhile loses what it had. Of several processes only the first has the file.

    Args:
        folder: where metrics.csv is, or will be; a file that is there stays as it is until `keep`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / METRICS_FILE
        self.rows = 0
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def keep(self, rows: int) -> None:
        """Go on after so many rows of a file that is there; the later ones will be written again."""
        found = read_whole_rows(self.path)
        if len(found) < rows:
            say(f"warning: {self.path}: {len(found)} rows, expected {rows}; the others are lost", style="yellow")
        kept = found[:rows]
        self.rows = len(kept)
        if kept:
            self._columns = list(kept[0])
            write_csv(self.path, kept, self._columns)
        else:
            self.path.unlink(missing_ok=True)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row."""
        row = {**metrics, "step": step}
        if not set(row) <= set(self._columns):
            earlier = read_whole_rows(self.path)
            self._columns = sorted({*self._columns, *row})
            write_csv(self.path, [*earlier, row], self._columns)
        else:
            with naming_unwritable(self.path), self.path.open("a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, self._columns, restval="").writerow(row)
        self.rows += 1

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def sync(self) -> None:
        """Return when the rows so far will survive even a loss of power, as the checkpoint that counts them does."""
        if self.path.is_file():
            sync_to_disk(self.path)


def read_whole_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv, without a last one that a killed run did not write to its end; [] without a file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        lines = stream.readlines()
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [row for row in csv.DictReader(lines) if None not in row.values()]


def _wandb_logger(config: DictConfig, run_folder: Path, goes_on: bool) -> WandbLogger:
    return WandbLogger(
        name=run_folder.name,
        id=wandb_id(run_folder, goes_on=goes_on),
        resume="allow",
        save_dir=run_folder,
        offline=config.logger.offline,
        project=config.logger.project,
        group=config.logger.group,
        tags=list(config.logger.tags),
        config=as_plain(config),
    )
