"""Read a sweep folder: its jobs and the state of each.

A sweep folder holds sweep.json, the manifest of its jobs, and a folder per job: a run folder with job.json beside its
config.yaml. Runs without a sweep are read as sweeps too. `e2enet.sweeps` writes these files.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from e2enet.common.configs import as_plain
from e2enet.common.errors import InputError, first_line
from e2enet.common.files import read_json
from e2enet.runs.job_key import job_key, training_key
from e2enet.system.locks import is_held

MANIFEST = "sweep.json"
MANIFEST_VERSION = 1
JOB_FILE = "job.json"
CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
COST_FILE = "cost.json"  # of the masks drawn, at the end of those that were scored
# Files that a run writes again and again: their times say when a killed run was last alive.
SIGNS_OF_LIFE = ("output.log", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt", JOB_FILE, CONFIG_FILE)

State = Literal["pending", "running", "finished", "crashed", "interrupted"]
STATES: tuple[State, ...] = ("pending", "running", "finished", "crashed", "interrupted")


@dataclass(frozen=True)
class SweepJob:
    """A line of the manifest: one training run, as the row of one experiment.

    Attributes:
        key: Key of the config without settings that do not change the result. Lines of two experiments may share one.
        folder: The run folder; it may not exist yet.
        experiment: Name of the file in experiments/, None for a sweep without one.
        row: Name of the row in the experiment's `ablation.rows`, None without rows.
        fold: 0..4 or "all".
        seed: Of weights, patches, augmentation and masks.
        data: The dataset's name, e.g. Task04_Hippocampus.
        overrides: Overrides given to e2enet train for this job, without the row's own.
        training_key: Equal for jobs that differ only in what follows training (`final.*`): they share one training.
    """

    key: str
    folder: Path
    experiment: str | None
    row: str | None
    fold: int | str
    seed: int
    data: str
    overrides: tuple[str, ...] = ()
    training_key: str = ""


@dataclass(frozen=True)
class Sweep:
    """The jobs of a folder, in the order in which they were planned.

    Attributes:
        folder: The folder of sweep.json; for runs without a sweep, the folder that was given.
        name: The sweep's name.
        ablations: Name of an experiment -> its `ablation` section (title, published_on, setting, reference, rows).
        jobs: A line per (experiment, row, job).
    """

    folder: Path
    name: str
    ablations: dict[str, dict[str, Any]]
    jobs: tuple[SweepJob, ...]


@dataclass(frozen=True)
class JobError:
    """Why a job crashed: the exception's message and traceback."""

    message: str
    traceback: str = ""


@dataclass(frozen=True)
class JobState:
    """The state of a job.

    Attributes:
        state: "pending" (never started), "running" (a process holds its folder), "finished", "crashed" (raised an
            error) or "interrupted" (stopped or killed; a relaunch resumes it).
        started: When its latest attempt began.
        ended: When that attempt ended; None while it runs or if it was killed.
        seconds: Total of all attempts: up to now for a running job, up to its last sign of life for a killed one.
        attempts: How often it was started.
        score: Of a finished job, the value for a search: mean validation Dice or its `optimized_metric`; None if none.
        error: Of a crashed job.
        host: Machine of the latest attempt.
        pid: Process of the latest attempt.
    """

    state: State
    started: datetime | None = None
    ended: datetime | None = None
    seconds: float = 0.0
    attempts: int = 0
    score: float | None = None
    error: JobError | None = None
    host: str = ""
    pid: int | None = field(default=None, compare=False)


def read_sweep(folder: str | Path) -> Sweep:
    """Read the manifest of a sweep folder. Without one, the folder or the folders in it are runs of `e2enet train`.

    Raises:
        InputError: the folder is missing or holds neither sweep nor run, or a file is malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a sweep's folder or a run folder")
    if (folder / MANIFEST).is_file():
        return _manifest_sweep(folder)
    runs = [folder] if (folder / CONFIG_FILE).is_file() else sorted(p.parent for p in folder.glob(f"*/{CONFIG_FILE}"))
    if not runs:
        raise InputError(f"{folder}: neither {MANIFEST} of a sweep nor {CONFIG_FILE} of a run is in it")
    return Sweep(folder, folder.resolve().name, {}, tuple(_plain_run(run) for run in runs))


def job_state(folder: str | Path, *, held: bool | None = None) -> JobState:
    """Return the state of a run folder's job, from its files and its lock (`held`, if the caller knows it).

    A run of plain `e2enet train` has no job.json. It is running if its folder is held, finished if it was scored, else
    interrupted.

    Raises:
        InputError: job.json is malformed.
    """
    folder = Path(folder)
    path = folder / JOB_FILE
    if not path.is_file():
        if is_held(folder) if held is None else held:
            return JobState("running", attempts=1)
        if not (folder / CONFIG_FILE).is_file():
            return JobState("pending")
        return JobState("finished" if (folder / SUMMARY_FILE).is_file() else "interrupted", attempts=1)
    if held is None:
        held = is_held(folder)  # checked before the file is read, or a job that ends in between would look killed
    content = read_json(path)
    try:
        return _state_of(content, folder, held)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not the state of a job ({type(error).__name__}: {error})") from error


def without_repeats(jobs: Sequence[SweepJob], place: Callable[[SweepJob], Hashable]) -> tuple[SweepJob, ...]:
    """Keep one of the jobs with the same `place`, which repeat each other: the newest finished, else the newest.

    The order is kept. The newest is the last, since plain runs are named by the time at which they began.
    """
    chosen: dict[Hashable, SweepJob] = {}
    for job in jobs:
        known = chosen.get(place(job))
        if known is None or _is_finished(job) or not _is_finished(known):
            chosen[place(job)] = job
    return tuple(job for job in jobs if chosen[place(job)] is job)


def read_config(folder: Path) -> dict[str, Any]:
    """Read the resolved config of a run folder into plain containers; InputError names a file that is not one."""
    path = folder / CONFIG_FILE
    try:
        config = OmegaConf.load(path)
        if isinstance(config, DictConfig):
            return as_plain(config)
    except (OSError, UnicodeError, YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path}: cannot be read as a run's config ({first_line(error)})") from error
    raise InputError(f"{path}: not a run's config")


def _is_finished(job: SweepJob) -> bool:
    return job_state(job.folder).state == "finished"


def _state_of(content: Mapping[str, Any], folder: Path, held: bool) -> JobState:
    state, error = content["state"], content.get("error")
    if state not in STATES:
        raise ValueError(f"state is {state!r}, expected one of {', '.join(STATES)}")
    started = datetime.fromisoformat(content["started"])
    seconds = float(content["seconds"])
    if state == "running":
        until = datetime.now(timezone.utc) if held else _last_sign_of_life(folder)
        seconds += max(0.0, (until - started).total_seconds())
        state = "running" if held else "interrupted"
    return JobState(
        state=state,
        started=started,
        ended=None if content.get("ended") is None else datetime.fromisoformat(content["ended"]),
        seconds=seconds,
        attempts=int(content["attempts"]),
        score=content.get("score"),
        error=None if error is None else JobError(str(error["message"]), str(error.get("traceback", ""))),
        host=str(content.get("host", "")),
        pid=content.get("pid"),
    )


def _last_sign_of_life(folder: Path) -> datetime:
    found = [path for path in (folder / name for name in SIGNS_OF_LIFE) if path.is_file()]
    return datetime.fromtimestamp(max(path.stat().st_mtime for path in found), timezone.utc)


def _manifest_sweep(folder: Path) -> Sweep:
    path = folder / MANIFEST
    content = read_json(path)
    try:
        if content["version"] != MANIFEST_VERSION:
            raise ValueError(f"version {content['version']}, expected {MANIFEST_VERSION}")
        jobs = tuple(_manifest_job(folder, line) for line in content["jobs"])
        return Sweep(folder, str(content["name"]), dict(content["ablations"]), jobs)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: not a sweep's manifest ({type(error).__name__}: {error})") from error


def _manifest_job(folder: Path, line: Mapping[str, Any]) -> SweepJob:
    return SweepJob(
        key=line["key"],
        folder=folder / line["folder"],
        experiment=line["experiment"],
        row=line["row"],
        fold=line["fold"],
        seed=line["seed"],
        data=line["data"],
        overrides=tuple(line["overrides"]),
        training_key=line.get("training_key", ""),
    )


def _plain_run(folder: Path) -> SweepJob:
    config = read_config(folder)
    data = config.get("data") or {}
    return SweepJob(
        key=job_key(config),
        folder=folder,
        experiment=None,
        row=config.get("row"),
        fold=config.get("fold", 0),
        seed=config.get("seed", 0),
        data=str(data.get("name", "")) if isinstance(data, Mapping) else "",
        training_key=training_key(config),
    )
