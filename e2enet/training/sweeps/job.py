"""One job of a sweep: skipped where it is finished or held by another launch, else run or gone on with."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Sequence
from math import nan
from pathlib import Path

from omegaconf import DictConfig

from e2enet.common.console import say
from e2enet.common.locks import claimed_folder
from e2enet.common.sweeps import CONFIG_FILE, JobError, job_state
from e2enet.training.records import write_config
from e2enet.training.run import EXIT_CODE_TERMINATED
from e2enet.training.sweeps.inside import end_with_sweep
from e2enet.training.sweeps.manifest import register_jobs
from e2enet.training.sweeps.process_group import job_command, run_process_group
from e2enet.training.sweeps.records import OUTCOME_FILE, read_outcome, record_end, record_start
from e2enet.training.sweeps.rows import ComposedJob, compose_job
from e2enet.training.sweeps.siblings import one_training, take_training

# How a job ends that was told to: by SIGTERM, or by what it makes of it (training.run).
STOPPED = (-signal.SIGTERM, EXIT_CODE_TERMINATED)


def run_job(overrides: Sequence[str], sweep: Path) -> float:
    """Run the job of these overrides in its folder below the sweep's; the mean validation Dice, NaN without one.

    Whatever is wrong with the job is recorded in its job.json, so that the sweep goes on with the others. What arrives
    from outside (Ctrl-C, a scheduler's signal) leaves it interrupted and ends the sweep.
    """
    end_with_sweep()
    job = compose_job(overrides)
    folder = register_jobs(sweep, str(job.config.name), [job])[job.key]
    # A finished job is skipped without its lock, so that many launches may look at it at once.
    if job_state(folder).state == "finished":
        return _skip(folder, "finished already")
    with claimed_folder(folder) as held:
        if not held:
            return _skip(folder, "running elsewhere")
        if job_state(folder, held=False).state == "finished":  # by the launch that held it until now
            return _skip(folder, "finished already")
        record_start(folder, job.key)
        try:
            with one_training(sweep, folder) as trained:
                return _train(job, sweep, folder, trained)
        except Exception as error:  # recorded and listed: what is wrong with one job must not stop the others
            return _crashed(folder, JobError(f"{type(error).__name__}: {error}", traceback.format_exc()))
        except BaseException:
            if job_state(folder, held=True).state == "running":  # not where it came just after the end
                record_end(folder, "interrupted")
            raise


def _train(job: ComposedJob, sweep: Path, folder: Path, trained: Path | None) -> float:
    """Run the job's processes and record how they ended."""
    if trained is not None:
        _say(folder, f"takes the training of {trained.name}")
        take_training(trained, folder)
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
        return nan if outcome["score"] is None else float(outcome["score"])
    if code in STOPPED:  # from outside, and this job alone
        record_end(folder, "interrupted")
        _say(folder, "stopped")
        return nan
    if "error" in outcome:
        return _crashed(folder, JobError(**outcome["error"]))
    return _crashed(folder, JobError(_ending(code), "\n".join(tail)))


def _job_config(job: ComposedJob, sweep: Path, folder: Path) -> DictConfig:
    """The job's config with what its place in the sweep decides: folder, and W&B's group and tags."""
    config = job.config.copy()
    config.run_folder = str(folder)
    config.resume = None
    if config.logger.wandb:
        config.logger.group = config.logger.group or sweep.resolve().name
        config.logger.tags = list(dict.fromkeys([*config.logger.tags, *_tags(job)]))
    return config


def _tags(job: ComposedJob) -> list[str]:
    """Row, fold, seed and the given overrides as W&B's tags, which have 1 to 64 characters."""
    named = {name: job.config.get(name) for name in ("row", "fold", "seed")}
    tags = [f"{name}={value}" for name, value in named.items() if value is not None]
    tags += [text.lstrip("+") for text in job.overrides if not text.lstrip("+").startswith(("paths.", "logger"))]
    return [tag for tag in dict.fromkeys(tags) if len(tag) <= 64]


def _crashed(folder: Path, error: JobError) -> float:
    record_end(folder, "crashed", error=error)
    _say(folder, f"crashed: {error.message}")
    return nan


def _ending(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code} and no result; its last output is in the traceback's place"
    name = signal.Signals(-code).name
    hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def _skip(folder: Path, why: str) -> float:
    _say(folder, why)
    score = job_state(folder).score
    return nan if score is None else score


def _say(folder: Path, what: str) -> None:
    say(f"{folder.name}: {what}")


def _show(folder: Path, line: str) -> None:
    # Jobs of several processes (joblib) share a terminal: every line says whose it is.
    say(f"{folder.name} | {line}")
