"""Jobs that differ only in what follows training: the first that runs trains, the others take what it trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from e2enet.common.files import atomic_path
from e2enet.common.job_key import SHORT
from e2enet.common.locks import locked_file
from e2enet.common.sweeps import job_state, read_sweep

LOCKS = ".training"
# What training leaves; figures, predictions and scores are made anew from it.
TRAINED = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "cost.json", "metrics.csv")


@contextmanager
def one_training(sweep: Path, job_folder: Path) -> Iterator[Path | None]:
    """Keep other jobs from training the same for the block; the folder of a finished one that has, None without one.

    Waits, and says so, while another is at it.
    """
    key = next(job.training_key for job in read_sweep(sweep).jobs if job.folder == job_folder)
    waiting = f"{job_folder.name}: waiting for a job that trains the same network (only final.* differs)"
    with locked_file(sweep / LOCKS / f"{key[:SHORT]}.lock", waiting):
        # Read again: another launch may have added one meanwhile.
        siblings = [job.folder for job in read_sweep(sweep).jobs if job.training_key == key]
        others = (folder for folder in dict.fromkeys(siblings) if folder != job_folder)
        yield next((folder for folder in others if job_state(folder).state == "finished"), None)


def take_training(source: Path, folder: Path) -> None:
    """Copy what the finished job `source` trained into a job's folder, file by file whole or not at all."""
    for name in TRAINED:
        if (source / name).is_file():
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)
