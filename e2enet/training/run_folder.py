"""The folder of a run: which runs may start in it, and the files that mark it once training has begun.

A refused start, or one stopped before its first step, leaves nothing that blocks the next start of the same or a
corrected command line. A resumed run's files are not changed before its new settings are known to work.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.common.files import naming_unwritable
from e2enet.common.overrides import force_added, overrides_of, parse_override, quoted
from e2enet.data.cases.split_file import RunSplit, write_run_split
from e2enet.runs.folders import CONFIG_FILE, JOB_FILE, MANIFEST
from e2enet.system.locks import is_held
from e2enet.system.ranks import is_rank_zero
from e2enet.training.loggers import keep_ids, metrics_file
from e2enet.training.records import write_config, write_versions
from e2enet.training.resume import LAST_CHECKPOINT
from e2enet.training.stopping import is_restarted

VERSIONS_FILE = "versions.json"


def refuse_taken(folder: Path) -> None:
    """Allow a new run in a folder that is free, or whose run never began to train.

    Raises:
        InputError: the folder belongs to a run, a sweep or a sweep's job.
    """
    if (folder / MANIFEST).exists():
        raise InputError(f"{folder}: is the folder of a sweep, with runs below it; name another for this run")
    if (folder / JOB_FILE).exists():
        raise InputError(f"{folder}: is the folder of a sweep's job; name another for this run")
    if any((folder / name).exists() for name in (CONFIG_FILE, LAST_CHECKPOINT)):
        raise InputError(f"{folder}: holds a run already; go on with it by resume={folder}, or name another")


def refuse_run(folder: Path) -> None:
    """Allow a sweep to start or continue in a folder that is not a run's.

    Raises:
        InputError: the folder belongs to a run.
    """
    if not (folder / MANIFEST).exists() and any((folder / name).exists() for name in (CONFIG_FILE, LAST_CHECKPOINT)):
        raise InputError(
            f"{folder}: is the folder of a run; name another for this sweep (name=TEXT or run_folder=FOLDER)"
        )


def with_own_folder(arguments: Sequence[str]) -> list[str]:
    """Return the checked command line of one run, with `run_folder` added if it names no folder.

    The folder is created at once: two runs that start in the same second get different folders, and all processes of a
    run get the same one.

    Raises:
        InputError: the named folder cannot be used for a new run.
    """
    overrides = overrides_of(arguments)
    named = {parse_override(text).key_or_group for text in overrides}
    if not is_rank_zero() or "resume" in named:  # other ranks check too late: rank 0 may have claimed the folder
        return list(arguments)
    folder = Path(str(compose_config(force_added(overrides), with_hydra=True).hydra.run.dir))
    if named & {"run_folder", "hydra.run.dir"}:
        if not is_restarted():
            refuse_taken(folder)
        return list(arguments)
    return [*arguments, f"run_folder={quoted(str(make_free(folder)))}"]


def make_free(folder: Path) -> Path:
    """Create the folder; if it exists, append _2, _3 .. to its name. Concurrent processes get different folders."""
    with naming_unwritable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for name in itertools.chain([folder.name], (f"{folder.name}_{number}" for number in itertools.count(2))):
            try:
                (folder.parent / name).mkdir()
            except FileExistsError:
                continue
            return folder.parent / name
    raise AssertionError("names do not end")


def has_begun(folder: Path) -> bool:
    """Whether the run of a folder has begun to train, or is about to: a sweep writes config.yaml earlier."""
    return (folder / VERSIONS_FILE).is_file() or ((folder / CONFIG_FILE).is_file() and is_held(folder))


def write_claim(folder: Path, config: dict[str, Any], split: RunSplit) -> None:
    """Write the files that mark a folder as a run's: its split, versions and machine, and config."""
    write_run_split(folder, split)
    write_versions(folder / VERSIONS_FILE)
    write_config(folder / CONFIG_FILE, config)


def how_to_go_on(folder: Path) -> str:
    """Return one line of advice for a run that was stopped from outside."""
    if (folder / CONFIG_FILE).is_file():
        return f"stopped; go on with it by resume={folder}"
    return "stopped before the first step; the same command line starts it again"


class Claim(pl.Callback):
    """Claims the folder for the run when training begins or is resumed.

    Args:
        write: writes the files that mark the folder as the run's.
        rows: rows of metrics.csv to keep; a resumed run writes the later ones again.
    """

    def __init__(self, write: Callable[[], None], rows: int) -> None:
        self.write = write
        self.rows = rows
        self.taken = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Claim the folder now: everything has been built and restored."""
        self.take(trainer)

    def take(self, trainer: pl.Trainer) -> None:
        """Claim the folder once, also for a run with nothing left to train."""
        if self.taken:
            return
        self.taken = True
        if trainer.is_global_zero:
            self.write()
            keep_ids(trainer, Path(trainer.default_root_dir))
        metrics_file(trainer).keep(self.rows)
