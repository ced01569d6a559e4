"""Run one job of a sweep: skip it if it is finished or held by another launch, else start or resume it.

If jobs differ only in what follows training, the first to run trains and the others copy its training.
"""

from __future__ import annotations

import shutil
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, open_dict

from e2enet.common.console import say
from e2enet.common.errors import ExitCode
from e2enet.common.files import atomic_path
from e2enet.runs.folders import CONFIG_FILE, COST_FILE, JobError, job_state, read_sweep
from e2enet.runs.job_key import SHORT
from e2enet.runs.rows import ComposedJob, compose_job
from e2enet.sweeps.inside import end_with_sweep
from e2enet.sweeps.manifest import register_jobs
from e2enet.sweeps.process_group import job_command, run_process_group
from e2enet.sweeps.records import OUTCOME_FILE, read_outcome, record_end, record_start
from e2enet.system.locks import claimed_folder, locked_file
from e2enet.training.loggers import is_wandb
from e2enet.training.records import write_config

# Exit codes of a job that was asked to stop: SIGTERM itself, or the code that training.run turns it into.
STOPPED = (-signal.SIGTERM, ExitCode.TERMINATED)
LOCKS = ".training"
# Files that training writes; figures, predictions and scores are made again from them.
TRAINED = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", COST_FILE, "metrics.csv")


def run_job(overrides: Sequence[str], sweep: Path) -> float | None:
    """Run the job of these overrides in its folder below the sweep's; return its score, None without one.

    A search counts a job without score as failed, and goes on. NaN would end it.

    An error of the job is recorded in its job.json, and the sweep goes on with the others. An interruption from outside
    (Ctrl-C, a scheduler's signal) marks the job as interrupted and ends the sweep.
    """
    end_with_sweep()
    job = compose_job(overrides)
    folder = register_jobs(sweep, str(job.config.name), [job])[job.key]
    # A finished job is skipped without taking its lock, so that many launches can check it at once.
    if job_state(folder).state == "finished":
        return _skip(folder, "finished already")
    with claimed_folder(folder) as held:
        if not held:
            return _skip(folder, "running elsewhere")
        if job_state(folder, held=False).state == "finished":  # by the launch that held it until now
            return _skip(folder, "finished already")
        record_start(folder, job.key)
        try:
            with _one_training(sweep, folder) as trained:
                return _train(job, sweep, folder, trained)
        except Exception as error:  # recorded and listed: an error of one job must not stop the others
            _crashed(folder, JobError(f"{type(error).__name__}: {error}", traceback.format_exc()))
            return None
        except BaseException:
            if job_state(folder, held=True).state == "running":  # not if it came just after the end
                record_end(folder, "interrupted")
            raise


@contextmanager
def _one_training(sweep: Path, job_folder: Path) -> Iterator[Path | None]:
    """Keep other jobs from training the same network during the block.

    Yields the folder of a finished job that has trained it, else None. While another job is training it, a message is
    printed and this one waits.
    """
    key = next(job.training_key for job in read_sweep(sweep).jobs if job.folder == job_folder)
    waiting = f"{job_folder.name}: waiting for a job that trains the same network (only final.* differs)"
    with locked_file(sweep / LOCKS / f"{key[:SHORT]}.lock", waiting):
        # Read again: another launch may have added one meanwhile.
        siblings = [job.folder for job in read_sweep(sweep).jobs if job.training_key == key]
        others = (folder for folder in dict.fromkeys(siblings) if folder != job_folder)
        yield next((folder for folder in others if job_state(folder).state == "finished"), None)


def _take_training(source: Path, folder: Path) -> None:
    """Copy the training files of the finished job `source` into a job's folder, each file atomically."""
    for name in TRAINED:
        if (source / name).is_file():
            with atomic_path(folder / name) as temporary:
                shutil.copyfile(source / name, temporary)


def _train(job: ComposedJob, sweep: Path, folder: Path, trained: Path | None) -> float | None:
    """Run the job's processes and record how they ended."""
    if trained is not None:
        _say(folder, f"takes the training of {trained.name}")
        _take_training(trained, folder)
    else:
        _say(folder, "goes on" if (folder / CONFIG_FILE).is_file() else "starts")
    write_config(folder / CONFIG_FILE, _job_config(job, sweep, folder))
    (folder / OUTCOME_FILE).unlink(missing_ok=True)
    command = job_command(job.config, folder)
    code, tail = run_process_group(command, folder, lambda line: _show(folder, line))
    outcome = read_outcome(folder)
    if code == 0 and "score" in outcome:
        record_end(folder, "finished", score=outcome["score"])
        _say(folder, "finished")
        return None if outcome["score"] is None else float(outcome["score"])
    if code in STOPPED:  # stopped from outside, and only this job
        record_end(folder, "interrupted")
        _say(folder, "stopped")
        return None
    _crashed(folder, JobError(**outcome["error"]) if "error" in outcome else JobError(_ending(code), "\n".join(tail)))
    return None


def _job_config(job: ComposedJob, sweep: Path, folder: Path) -> DictConfig:
    """Return the job's config with the values that depend on the sweep: run folder, and W&B's group and tags."""
    config = job.config.copy()
    config.run_folder = str(folder)
    config.resume = None
    for logger in (config.get("logger") or {}).values():
        if is_wandb(logger):
            with open_dict(logger):
                logger.group = logger.get("group") or sweep.resolve().name
                logger.tags = list(dict.fromkeys([*(logger.get("tags") or []), *_tags(job)]))
    return config


def _tags(job: ComposedJob) -> list[str]:
    """Return row, fold, seed and the given overrides as W&B tags, which have 1 to 64 characters."""
    named = {name: job.config.get(name) for name in ("row", "fold", "seed")}
    tags = [f"{name}={value}" for name, value in named.items() if value is not None]
    tags += [text.lstrip("+") for text in job.overrides if not text.lstrip("+").startswith(("paths.", "logger"))]
    return [tag for tag in dict.fromkeys(tags) if len(tag) <= 64]


def _crashed(folder: Path, error: JobError) -> None:
    record_end(folder, "crashed", error=error)
    _say(folder, f"crashed: {error.message}")


def _ending(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code} and no result; its last output is in the traceback's place"
    name = signal.Signals(-code).name
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def _skip(folder: Path, why: str) -> float | None:
    _say(folder, why)
    return job_state(folder).score


def _say(folder: Path, what: str) -> None:
    say(f"{folder.name}: {what}")


def _show(folder: Path, line: str) -> None:
    # Jobs that run at once (joblib) share a terminal, so every line names its job.
    say(f"{folder.name} | {line}")
