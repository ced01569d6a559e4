"""The folder of a run: what may begin in it, and what a run writes that has begun to train.

A start that is refused, and one that is stopped before its first step, leaves nothing that is in the way of the next:
the same command line, or a corrected one. Of a run that goes on nothing is changed before its new settings are known
to work.
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
from e2enet.common.overrides import overrides_of, parse_override, quoted
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
    """Let a new run begin in a folder that is free, or holds what never began to train.

    Raises:
        InputError: the folder is that of a run, of a sweep or of a sweep's job.
    """
    if (folder / MANIFEST).exists():
        raise InputError(f"{folder}: is the folder of a sweep, with runs below it; name another for this run")
    if (folder / JOB_FILE).exists():
        raise InputError(f"{folder}: is the folder of a sweep's job; name another for this run")
    if any((folder / name).exists() for name in (CONFIG_FILE, LAST_CHECKPOINT)):
        raise InputError(f"{folder}: holds a run already; go on with it by resume={folder}, or name another")


def refuse_run(folder: Path) -> None:
    """Let a sweep begin, or go on, in a folder that is not a run's.

    Raises:
        InputError: it is that of a run.
    """
    if not (folder / MANIFEST).exists() and any((folder / name).exists() for name in (CONFIG_FILE, LAST_CHECKPOINT)):
        raise InputError(
            f"{folder}: is the folder of a run; name another for this sweep (name=TEXT or run_folder=FOLDER)"
        )


def with_own_folder(arguments: Sequence[str]) -> list[str]:
    """A checked command line of one run, with the folder that it gets where it names none.

    It is made at once, so that of two runs that begin in the same second each has its own, and all processes of a run
    are told its name.

    Raises:
        InputError: the folder that is named cannot be a new run's.
    """
    overrides = overrides_of(arguments)
    named = {parse_override(text).key_or_group for text in overrides}
    if not is_rank_zero() or "resume" in named:  # by the time that another process looks, it may be its own run's
        return list(arguments)
    folder = Path(str(compose_config(overrides, with_hydra=True).hydra.run.dir))
    if named & {"run_folder", "hydra.run.dir"}:
        if not is_restarted():
            refuse_taken(folder)
        return list(arguments)
    return [*arguments, f"run_folder={quoted(str(make_free(folder)))}"]


def make_free(folder: Path) -> Path:
    """Make a folder of this name, or with _2, _3 .. behind it where there is one; several processes get several."""
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
    """Whether the run of a folder has begun to train, or is about to; a sweep writes config.yaml before that."""
    return (folder / VERSIONS_FILE).is_file() or ((folder / CONFIG_FILE).is_file() and is_held(folder))


def write_claim(folder: Path, config: dict[str, Any], split: RunSplit) -> None:
    """Write what makes a folder a run's: the config of a resumed run, its split, and what it runs on."""
    write_run_split(folder, split)
    write_versions(folder / VERSIONS_FILE)
    write_config(folder / CONFIG_FILE, config)


def how_to_go_on(folder: Path) -> str:
    """The line of advice for a run that was stopped from outside."""
    if (folder / CONFIG_FILE).is_file():
        return f"stopped; go on with it by resume={folder}"
    return "stopped before the first step; the same command line starts it again"


class Claim(pl.Callback):
    """Makes the folder the run's when training begins, or goes on.

    Args:
        write: writes what makes it that.
        rows: those of metrics.csv that the run goes on after; later ones will be written again.
    """

    def __init__(self, write: Callable[[], None], rows: int) -> None:
        self.write = write
        self.rows = rows
        self.taken = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Everything has been built and restored by now."""
        self.take(trainer)

    def take(self, trainer: pl.Trainer) -> None:
        """Do it once; for runs, too, that have nothing left to train."""
        if self.taken:
            return
        self.taken = True
        if trainer.is_global_zero:
            self.write()
            keep_ids(trainer, Path(trainer.default_root_dir))
        metrics_file(trainer).keep(self.rows)
