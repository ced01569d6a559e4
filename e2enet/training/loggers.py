"""Where a run's numbers go: metrics.csv in the run folder always, Weights & Biases by a key."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig

from e2enet.common.configs import as_plain
from e2enet.common.ranks import is_first

METRICS_FILE = "metrics.csv"


def build_loggers(config: DictConfig, run_folder: Path, first_step: int = 0) -> list[Logger]:
    """The loggers of one job.

    `first_step` is the optimizer step a resumed run goes on from: earlier rows of its metrics.csv are kept,
    rows that will be written again are dropped.
    """
    loggers: list[Logger] = [_csv_logger(run_folder, first_step)]
    if config.logger.wandb:
        loggers.append(_wandb_logger(config, run_folder))
    return loggers


def finish_wandb() -> None:
    """End the job's W&B run, or the next job of this process would write into it."""
    import wandb

    if wandb.run is not None:
        wandb.finish()


def _csv_logger(run_folder: Path, first_step: int) -> CSVLogger:
    earlier: list[dict[str, Any]] = []
    path = run_folder / METRICS_FILE
    # Of several processes only the first has the file.
    if path.is_file() and is_first():
        earlier = [row for row in _whole_rows(path) if int(row["step"]) < first_step]
        # Lightning would delete the file itself and warn about the folder.
        path.unlink()
    logger = CSVLogger(run_folder, name="", version="", flush_logs_every_n_steps=1)
    if earlier:
        logger.experiment.metrics.extend(earlier)
        logger.save()
    return logger


def _whole_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv, without a last one that a killed run did not write to its end."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return [row for row in csv.DictReader(lines) if None not in row.values()]


def _wandb_logger(config: DictConfig, run_folder: Path) -> WandbLogger:
    return WandbLogger(
        name=run_folder.name,
        # The same folder is the same run: a resumed job continues its own curves.
        id=hashlib.sha256(str(run_folder.resolve()).encode()).hexdigest()[:12],
        resume="allow",
        save_dir=run_folder,
        offline=config.logger.offline,
        project=config.logger.project,
        group=config.logger.group,
        tags=list(config.logger.tags),
        config=as_plain(config),
    )
