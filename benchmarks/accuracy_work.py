"""The work folder of `benchmarks.accuracy`: settings, measured times, jobs and points, a file for each that is done.

WORK/DATASET/settings.json                 what every job of the folder has in common
WORK/DATASET/times/METHOD.json             seconds per step
WORK/DATASET/jobs/METHOD_s0/job.json       length and settings of a training
WORK/DATASET/jobs/METHOD_s0/points/10.json scores after ten minutes
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.accuracy_plan import DATASETS, OVERRIDES, Schedule
from benchmarks.network import processor
from e2enet.common.errors import InputError, raise_problems
from e2enet.common.files import read_json, write_json
from e2enet.common.overrides import quoted
from e2enet.data.cases.choice import ChosenCases, read_chosen
from e2enet.data.command import build_datamodule, compose_data
from e2enet.sweeps.process_group import OUTPUT_FILE, run_process_group

ROOT = Path(__file__).resolve().parents[1]
STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Bench:
    """One dataset in a work folder, and what all of its trainings have in common.

    Attributes:
        work: The work folder.
        data: Parent folder of raw datasets.
        dataset: A key of `DATASETS`.
        training: Choice of the config group `training`.
        overrides: Further overrides of `e2enet train`.
        threads: Threads of a training, and worker processes of its loader, for which the minutes count.
        run_threads: Threads that trainings and predictions take now.
        minutes: At which trainings are scored, in order.
        each: Whether each of the minutes has a training of its own.
        nnunet_python: The interpreter beside which nnU-Net's commands lie.
    """

    work: Path
    data: Path
    dataset: str
    training: str
    overrides: tuple[str, ...]
    threads: int
    run_threads: int
    minutes: tuple[float, ...]
    each: bool
    nnunet_python: str

    @property
    def folder(self) -> Path:
        return self.work / self.dataset

    @property
    def images(self) -> Path:
        """Folder of links to the validation scans, named as both programs read them: case_0000.nii.gz."""
        return self.folder / "validation"

    @cached_property
    def chosen(self) -> ChosenCases:
        """The dataset and the split; the phantom is generated first."""
        module = build_datamodule(compose_data(self.arguments(next(iter(OVERRIDES)))).config)
        module.source.create()
        return read_chosen(module.source, module.choice)

    def arguments(self, method: str) -> list[str]:
        """Return the overrides of `e2enet train` for a method, without seed, length and run folder."""
        dataset = DATASETS[self.dataset]
        given = [*dataset.data, *dataset.e2enet, f"training={self.training}", *OVERRIDES[method], *self.overrides]
        paths = [f"paths.data={quoted(str(self.data))}", f"paths.prepared={quoted(str(self.folder / 'prepared'))}"]
        return [*given, *paths, "trainer=cpu", "final.predict=false", f"data.num_workers={self.threads}"]

    def check_settings(self) -> None:
        """Write what all jobs have in common; InputError if the folder was begun with something else."""
        path = self.folder / "settings.json"
        now = {"training": self.training, "overrides": list(self.overrides), "threads": self.threads}
        now |= {"minutes": list(self.minutes), "each": self.each}
        if not path.is_file():
            write_json(path, now)
            return
        then = read_record(path, list(now))
        raise_problems(
            [f"{key} is {now[key]}, {then[key]} before" for key in now if now[key] != then[key]],
            f"{path}: its jobs were begun with other settings; the same, or another --work, expected:",
        )


@dataclass(frozen=True)
class Job:
    """One training of a method, scored at the points of its schedule; `timing` says where its seconds are from."""

    folder: Path
    method: str
    seed: int
    schedule: Schedule
    timing: str

    def point(self, minutes: float) -> Path:
        return self.folder / "points" / f"{minutes:g}.json"

    @property
    def missing(self) -> list[float]:
        """Points that are not scored yet."""
        return [minutes for minutes in self.schedule.points if not self.point(minutes).is_file()]


def job_folder(bench: Bench, method: str, seed: int, points: Sequence[float]) -> Path:
    """Return the folder of a training; with `each` its budget is in the name."""
    name = f"{method}_s{seed}" + f"_{points[-1]:g}min" * bench.each
    return bench.folder / "jobs" / name


def read_times(bench: Bench, method: str) -> dict[str, Any] | None:
    """Return what `write_times` wrote; None if there is nothing yet."""
    path = _times(bench, method)
    return read_record(path, ["seconds_per_step", "timing"]) if path.is_file() else None


def write_times(bench: Bench, method: str, seconds_per_step: float, source: str) -> None:
    """Keep the seconds per step of a method, and in words where they are from."""
    timing = f"{source}, {bench.threads} threads of {processor()}"
    write_json(_times(bench, method), {"seconds_per_step": seconds_per_step, "timing": timing})


def busy_cores(seconds: float = 1.0) -> float:
    """Return how many cores all programs keep busy now, over so many seconds (Linux)."""

    def busy() -> int:
        user, nice, system, _idle, _waiting, *interrupts = map(int, STAT.read_text().split()[1:8])
        return user + nice + system + sum(interrupts)

    before = busy()
    time.sleep(seconds)
    return (busy() - before) / os.sysconf("SC_CLK_TCK") / seconds


def _times(bench: Bench, method: str) -> Path:
    return bench.folder / "times" / f"{method}.json"


def read_record(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read a JSON object; InputError naming the file if it lacks one of the keys."""
    content = read_json(path)
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}; a file of benchmarks.accuracy expected")
    return dict(content)


def run_program(command: Sequence[str | Path], folder: Path, variables: Mapping[str, str]) -> None:
    """Run a command to its end; its output is added to FOLDER/output.log.

    It ends with this process, by SIGTERM first, so that a training writes a checkpoint.

    Raises:
        InputError: it failed; the message holds its last lines.
    """
    words = [str(word) for word in command]
    folder.mkdir(parents=True, exist_ok=True)
    # `env` sets the variables for this process alone; the package and this folder are found from everywhere.
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    settings = [f"{name}={value}" for name, value in {**variables, "PYTHONPATH": found}.items()]
    code, tail = run_process_group(["env", *settings, *words], folder, lambda _: None)
    if code != 0:
        lines = "\n".join(list(tail)[-15:])
        raise InputError(f"{' '.join(words)}: ended with {code}; see {folder / OUTPUT_FILE}\n{lines}")


def thread_variables(threads: int) -> dict[str, str]:
    """Return the environment of a program that uses so many threads."""
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS")}
