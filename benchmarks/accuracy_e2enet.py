"""E2ENet's side of `benchmarks.accuracy`: times, trains and predicts by `e2enet train` and `e2enet predict`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.accuracy_plan import Schedule
from benchmarks.accuracy_work import Bench, Job, read_record, run_program, thread_variables
from e2enet.common.errors import InputError
from e2enet.common.overrides import quoted
from e2enet.configuration.check import check_command_line
from e2enet.inference.checkpoint import load_model

STEP_TIME = "time/step"  # column of metrics.csv: seconds per step of an epoch, waiting for batches included
PROGRAM = [sys.executable, "-m", "e2enet"]


def check(bench: Bench, method: str) -> None:
    """Check the whole command line; InputError lists all that is wrong with it."""
    check_command_line(bench.arguments(method))


def prepare(bench: Bench) -> None:
    """Nothing: `e2enet train` prepares the cases itself, before it counts time."""


def measure_seconds(bench: Bench, method: str, steps: int) -> float:
    """Train two epochs of so many steps and return the second's seconds per step."""
    folder = bench.folder / "timing" / method
    shutil.rmtree(folder, ignore_errors=True)
    _train(bench, method, 0, Schedule(0.0, steps, 2, {}), folder)
    seconds = _step_times(folder / "run")[1]
    shutil.rmtree(folder)
    return seconds


def train(bench: Bench, job: Job) -> None:
    """Train to the end of the schedule, from the last checkpoint if there is one."""
    if not _checkpoint(job, max(job.schedule.points)).is_file():
        _train(bench, job.method, job.seed, job.schedule, job.folder)


def predict(bench: Bench, job: Job, minutes: float, output: Path) -> None:
    """Predict the validation scans with the weights of a point; finished ones are kept."""
    places = [f"input={quoted(str(bench.images))}", f"output={quoted(str(output))}"]
    checkpoint = f"checkpoint={quoted(str(_checkpoint(job, minutes)))}"
    command = [*PROGRAM, "predict", checkpoint, *places, "device=cpu"]
    run_program(command, job.folder, thread_variables(bench.run_threads))


def clock_seconds(bench: Bench, job: Job, minutes: float) -> float:
    """Return the seconds that the steps up to a point took."""
    times = _step_times(job.folder / "run")
    return sum(times[epoch] for epoch in range(job.schedule.points[minutes])) * job.schedule.steps_per_epoch


def describe(bench: Bench, job: Job) -> dict[str, Any]:
    """Return patch, batch, versions and settings of a finished training."""
    plan = load_model(_checkpoint(job, max(job.schedule.points))).plan
    versions = read_record(job.folder / "run" / "versions.json", ["packages", "git"])
    packages, commit = versions["packages"], (versions["git"] or {}).get("commit")
    own = f"e2enet {packages['e2enet']}" + (f" at {commit[:7]}" if commit else "")
    hidden = ("paths.", "data.num_workers")
    shown = [word for word in bench.arguments(job.method) if not word.startswith(hidden)]
    return {
        "patch_size": list(plan.patch_size),
        "batch_size": plan.batch_size,
        "versions": f"{own}, torch {packages['torch']}",
        "settings": [f"`e2enet train {' '.join(shown)}`; epochs: see the steps", "`e2enet predict` with its defaults"],
    }


def _train(bench: Bench, method: str, seed: int, schedule: Schedule, folder: Path) -> None:
    run = folder / "run"
    if (run / "config.yaml").is_file():
        words = [f"resume={quoted(str(run))}"]
    else:
        length = [f"training.epochs={schedule.epochs}", f"training.steps_per_epoch={schedule.steps_per_epoch}"]
        every = [f"training.{key}={schedule.period}" for key in ("keep_every", "validate_every")]
        length += [*every, "training.validate_full=null"]
        words = [*bench.arguments(method), *length, f"seed={seed}", f"run_folder={quoted(str(run))}"]
    run_program([*PROGRAM, "train", *words], folder, thread_variables(bench.run_threads))


def _checkpoint(job: Job, minutes: float) -> Path:
    return job.folder / "run" / "checkpoints" / f"epoch_{job.schedule.points[minutes]:04d}.ckpt"


def _step_times(run: Path) -> dict[int, float]:
    """Return {epoch: seconds per step} of a run."""
    path = run / "metrics.csv"
    rows = pd.read_csv(path)
    if STEP_TIME not in rows:
        raise InputError(f"{path}: has no column {STEP_TIME}; the metrics of a run expected")
    rows = rows.dropna(subset=[STEP_TIME])
    return {int(epoch): float(seconds) for epoch, seconds in zip(rows["epoch"], rows[STEP_TIME], strict=True)}
