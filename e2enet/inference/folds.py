"""Find the runs of one configuration of a sweep, trained on every fold.

Jobs of one configuration differ only in fold (or in fold and seed, for `seed=all`). A sweep of several rows or seeds
has several configurations, of which one must be selected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from e2enet.common.errors import InputError, raise_problems
from e2enet.data.cases.split_file import read_run_split
from e2enet.data.cases.splits import NUM_FOLDS
from e2enet.runs.folders import (
    CONFIG_FILE,
    MANIFEST,
    Sweep,
    SweepJob,
    job_state,
    read_config,
    read_sweep,
    without_repeats,
)
from e2enet.runs.variants import configuration_settings, differing

ALL_SEEDS = "all"
Seed = int | Literal["all"]


@dataclass(frozen=True)
class RunSelector:
    """Keys that select a configuration of a sweep; None matches any.

    `row` is a row's name. For jobs that differ in settings but are no rows, it is those settings as listed in the error
    about an ambiguous selection (`dsff.density=0.1`).
    """

    experiment: str | None = None
    row: str | None = None
    seed: Seed | None = None

    def __bool__(self) -> bool:
        return self != RunSelector()


@dataclass(frozen=True)
class Configuration:
    """Jobs of a sweep that differ only in fold, one per fold; `seed` is None if they also differ in seed."""

    experiment: str | None
    row: str | None
    seed: int | None
    jobs: tuple[SweepJob, ...]

    def describe(self) -> str:
        """Return the keys that select it."""
        given = {"experiment": self.experiment, "row": self.row, "seed": self.seed if self.seed is not None else "all"}
        return " ".join(f"{key}={_quoted(value)}" for key, value in given.items() if value is not None)

    @property
    def folder_name(self) -> str:
        """A folder name from these keys, such as sparsity-s80-seed0."""
        parts = (self.experiment, self.row, "all_seeds" if self.seed is None else f"seed{self.seed}")
        return re.sub(r"[^\w.=+-]+", "_", "-".join(part for part in parts if part))


@dataclass(frozen=True)
class FoldRuns:
    """The finished runs of one configuration, which an ensemble averages.

    Attributes:
        sweep: The sweep folder.
        configuration: The configuration of the runs.
        jobs: The finished jobs, in the order of fold and seed.
        left_out: A line per missing fold; empty unless missing folds were allowed.
    """

    sweep: Path
    configuration: Configuration
    jobs: tuple[SweepJob, ...]
    left_out: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[Path, ...]:
        """The run folders."""
        return tuple(job.folder for job in self.jobs)


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds runs instead of being one."""
    return folder.is_dir() and ((folder / MANIFEST).is_file() or _holds_runs(folder))


def find_folds(folder: str | Path, choice: RunSelector | None = None, *, allow_missing: bool = False) -> FoldRuns:
    """Return the finished runs of one configuration of a sweep, with every fold.

    In a sweep of several configurations, `choice` must match exactly one. Every fold of the split must be finished, for
    every seed if `choice.seed` is "all". With `allow_missing`, the finished folds are enough.

    Raises:
        InputError: no matching configuration, several of them, missing folds (each with its state), or no fold at all.
    """
    sweep = read_sweep(folder)
    chosen = _choose(sweep, choice or RunSelector())
    finished, missing = _by_state(chosen)
    if missing and not (allow_missing and finished):
        advice = "none is left" if not finished else "allow_missing_folds goes on without them"
        raise_problems(missing, f"{folder}: folds of {chosen.describe()} are missing ({advice}):")
    return FoldRuns(sweep.folder, chosen, tuple(finished), tuple(missing))


def configurations(sweep: Sweep, *, join_seeds: bool = False) -> list[Configuration]:
    """Return the configurations of a sweep, in the order of its jobs; one in two experiments is listed twice.

    If several runs of a configuration have the same fold and seed, the newest finished one counts (`without_repeats`).
    """
    groups: dict[tuple[Any, ...], list[SweepJob]] = {}
    found = configuration_settings(sweep.jobs)
    settings = {id(job): own for job, own in zip(sweep.jobs, found, strict=True)}
    for job in sweep.jobs:
        text = str(sorted(settings[id(job)].items(), key=str))
        # fold=all trains on every case: it forms no ensemble with single folds.
        group = (job.experiment, job.row, job.data, text, job.fold == "all", None if join_seeds else job.seed)
        groups.setdefault(group, []).append(job)
    names = _names(groups.values(), settings)
    return [
        Configuration(experiment, name, seed, without_repeats(jobs, lambda job: (job.fold, job.seed)))
        for (experiment, *_, seed), jobs, name in zip(groups, groups.values(), names, strict=True)
    ]


def _choose(sweep: Sweep, choice: RunSelector) -> Configuration:
    known = configurations(sweep, join_seeds=choice.seed == ALL_SEEDS)
    wanted = [configuration for configuration in known if _fits(configuration, choice)]
    # The same jobs may be rows of two experiments.
    if len({frozenset(job.key for job in configuration.jobs) for configuration in wanted}) == 1:
        return wanted[0]
    what = "no configuration fits" if not wanted else f"{len(wanted)} configurations fit"
    asked = " ".join(f"{key}={_quoted(value)}" for key, value in vars(choice).items() if value is not None)
    lines = "\n".join(f"  - {configuration.describe()}" for configuration in wanted or known)
    raise InputError(
        f"{sweep.folder}: {what}{' ' * bool(asked)}{asked}; expected the keys of one of them (or its run folders, as a "
        f"list of checkpoints):\n{lines}"
    )


def _fits(configuration: Configuration, choice: RunSelector) -> bool:
    rows = {configuration.row, *(job.row for job in configuration.jobs)}
    experiments = {configuration.experiment, *(job.experiment for job in configuration.jobs)}
    return (
        (choice.experiment is None or choice.experiment in experiments)
        and (choice.row is None or choice.row in rows)
        and (choice.seed in (None, ALL_SEEDS) or choice.seed == configuration.seed)
    )


def _names(groups: Iterable[Sequence[SweepJob]], settings: dict[int, dict[str, Any]]) -> list[str | None]:
    """Return a name per group: its row, then in brackets the settings that distinguish groups of the same row.

    Without a row, the name is these settings.
    """
    groups = list(groups)
    names: list[str | None] = []
    for jobs in groups:
        row = jobs[0].row
        alike = [other for other in groups if (other[0].experiment, other[0].row) == (jobs[0].experiment, row)]
        texts = differing([_told(other[0], settings) for other in alike])
        variant = next(text for other, text in zip(alike, texts, strict=True) if other is jobs)
        names.append(f"{row} ({variant})" if row and variant else variant or row)
    return names


def _told(job: SweepJob, settings: dict[int, dict[str, Any]]) -> dict[str, Any]:
    return {"data": job.data, **settings[id(job)], **({"fold": "all"} if job.fold == "all" else {})}


def _by_state(configuration: Configuration) -> tuple[list[SweepJob], list[str]]:
    """Return the finished jobs by fold and seed, and a line for every fold (and seed) without one."""
    finished, missing = [], []
    jobs = sorted(configuration.jobs, key=lambda job: (str(job.fold), job.seed))
    for job in jobs:
        state = job_state(job.folder).state
        if state == "finished":
            finished.append(job)
        else:
            missing.append(f"fold {job.fold}, seed {job.seed}: {state} ({job.folder})")
    for seed in sorted({job.seed for job in jobs}):
        there = {job.fold for job in jobs if job.seed == seed}
        missing += [f"fold {fold}, seed {seed}: not in the sweep" for fold in _expected(jobs) if fold not in there]
    return finished, missing


def _expected(jobs: Sequence[SweepJob]) -> list[int | str]:
    """Return all folds that a configuration should have.

    They are "all" for fold=all, else those of a run's stored split. Without one, they are 0..4 for a five-fold split
    and 0 for any other.
    """
    if jobs[0].fold == "all":
        return ["all"]
    stored = next((split for job in jobs if (split := read_run_split(job.folder)) is not None), None)
    if stored is not None:
        return list(range(stored.folds))
    started = next((job for job in jobs if (job.folder / CONFIG_FILE).is_file()), None)
    data = read_config(started.folder).get("data", {}) if started else {}
    return list(range(NUM_FOLDS)) if data.get("split", "five_fold") == "five_fold" else [0]


def _holds_runs(folder: Path) -> bool:
    own = (folder / CONFIG_FILE).is_file() or (folder / "checkpoints").is_dir()
    return not own and any(folder.glob(f"*/{CONFIG_FILE}"))


def _quoted(value: Any) -> str:
    return f"'{value}'" if any(sign in str(value) for sign in " =,()[]") else str(value)
