"""Loggers of a run: always metrics.csv in the run folder, and those of the config group `logger`."""

from __future__ import annotations

import csv
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, WandbLogger

from e2enet.common.console import say
from e2enet.common.errors import InputError
from e2enet.common.files import naming_unwritable, read_json, sync_to_disk, write_csv, write_json
from e2enet.common.signatures import build_part, resolve_target

METRICS_FILE = "metrics.csv"
# Arguments given to a logger that has such parameters; only W&B's gets the last two.
SUPPLIED = frozenset({"save_dir", "name", "version", "run_name", "id", "run_id", "resume", "config"})
IDS_FILE = "loggers.json"  # the run's ids at its loggers


def build_loggers(
    sections: Mapping[str, Any], run_folder: Path, *, goes_on: bool, config: Mapping[str, Any]
) -> list[Logger]:
    """Build metrics.csv and the loggers of the config group `logger`.

    A logger gets those of these arguments that its signature has: `save_dir` (the run folder), `name` (its name in the
    group), `run_name` (the folder's name), and `id` or `run_id`, with which it continues an earlier log.

    Args:
        sections: name -> section with `_target_`, or None for no logger.
        run_folder: of the run.
        goes_on: whether the run is resumed; otherwise it is new, whatever the folder held before.
        config: the run's, for loggers that show it.
    """
    loggers: list[Logger] = [MetricsFile(run_folder)]
    for name, section in sections.items():
        if section is not None:
            known = {"save_dir": run_folder, "name": name, "version": "", "run_name": run_folder.name}
            known["run_id"] = _stored_id(run_folder, name) if goes_on else None
            if is_wandb(section):
                identity = wandb_id(run_folder, name, goes_on=goes_on)
                known |= {"name": run_folder.name, "id": identity, "version": None}
                section = {**section, "resume": "allow", "config": dict(config), "_recursive_": False}
            logger = build_part(section, **known)
            logger.group_name = name
            loggers.append(logger)
    return loggers


def wandb_id(run_folder: Path, name: str, *, goes_on: bool) -> str:
    """Return the W&B id of a run: drawn once and kept in the run folder, also when that is moved.

    Runs of earlier versions have no file of ids; their id is the end of the names in W&B's own folder. A run that is
    not resumed gets a new id, whatever the folder held before.
    """
    if goes_on and (stored := _stored_id(run_folder, name)):
        return stored
    begun = sorted((run_folder / "wandb").glob("*run-*-*"), key=lambda path: path.name.partition("run-")[2])
    if goes_on and begun:
        return begun[-1].name.rpartition("-")[2]
    return uuid.uuid4().hex[:12]  # not drawn from a generator that the run has seeded


def keep_ids(trainer: pl.Trainer, run_folder: Path) -> None:
    """Write the ids that the loggers use for a started run, so that a resumed run continues with them."""
    named = {name: logger for logger in trainer.loggers if (name := getattr(logger, "group_name", None))}
    ids = {name: getattr(logger, "run_id", logger.version) for name, logger in named.items()}
    if kept := {name: version for name, version in ids.items() if isinstance(version, str) and version}:
        write_json(run_folder / IDS_FILE, kept)


def finish_wandb() -> None:
    """End the job's W&B run; otherwise the next job of this process would write to it."""
    if "wandb" in sys.modules and sys.modules["wandb"].run is not None:
        sys.modules["wandb"].finish()


def _stored_id(run_folder: Path, name: str) -> str | None:
    path = run_folder / IDS_FILE
    found = read_json(path).get(name) if path.is_file() else None
    return None if found is None else str(found)


def is_wandb(section: Mapping[str, Any] | None) -> bool:
    """Whether a section of the config group `logger` builds Lightning's W&B logger or a subclass."""
    if section is None:
        return False
    target = resolve_target(str(section["_target_"]))
    return isinstance(target, type) and issubclass(target, WandbLogger)


def metrics_file(trainer: pl.Trainer) -> MetricsFile:
    """Return the `MetricsFile` of a run's trainer."""
    return next(logger for logger in trainer.loggers if isinstance(logger, MetricsFile))


class MetricsFile(Logger):
    """metrics.csv: one row per call, in the file when the call returns.

    Lightning's CSVLogger rewrites the whole file in place whenever a metric appears for the first time: a run that
    is killed meanwhile loses its metrics. Only rank 0 writes the file.

    Args:
        folder: the folder of metrics.csv. An existing file is left unchanged until `keep`.
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
        """Keep the first `rows` rows of an existing file; the run will write the later ones again."""
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
        """Write the rows to disk, so that they survive a loss of power like the checkpoint that counts them."""
        if self.path.is_file():
            sync_to_disk(self.path)


def last_logged(run_folder: Path, name: str) -> float:
    """Return the last value of a metric in a run's metrics.csv.

    Raises:
        InputError: the run has logged no value of this name.
    """
    rows = read_whole_rows(run_folder / METRICS_FILE)
    values = [row[name] for row in rows if row.get(name)]
    if not values:
        names = sorted({key for row in rows for key, value in row.items() if value} - {"step", "epoch"})
        raise InputError(
            f"optimized_metric={name}: {run_folder} has logged no such value; expected {' | '.join(names)}"
        )
    return float(values[-1])


def read_whole_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics.csv, without an incomplete last row of a killed run; [] without a file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        lines = stream.readlines()
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [row for row in csv.DictReader(lines) if None not in row.values()]
