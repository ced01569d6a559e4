"""Group jobs into the lines of an experiment's table: repetitions of one configuration over folds and seeds."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from e2enet.report.results.row_labels import row_label
from e2enet.report.results.runs import FINISHED, Runs

TRAINED_ON_ALL = "all"  # the fold without a validation set
ON_TRAINING_CASES = "fold all, scored on training cases"


@dataclass(frozen=True)
class Group:
    """The jobs of one line.

    Attributes:
        row: Its row of the experiment; None without rows.
        label: Name of the line.
        variant: The settings that tell its configuration from others of its row.
        jobs: Its lines of `Runs.jobs`; empty if the row was not run.
        role: row | run (one fold and seed of a configuration) | mean (over the runs above it) | training (runs of
            fold=all: they are scored on their training cases and must not be compared with others).
        configuration: Name of the configuration if the label says more, as for a mean.
    """

    row: str | None
    label: str
    variant: str
    jobs: pd.DataFrame
    role: str = "row"
    configuration: str | None = None

    @property
    def finished(self) -> pd.DataFrame:
        """The jobs that ended well."""
        return self.jobs[self.jobs["state"] == FINISHED]

    @property
    def is_tested(self) -> bool:
        """Whether it takes part in tests between lines."""
        return self.role in ("row", "mean")

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which a reference may be given; messages list the first."""
        return (self.row or self.configuration or self.label, self.label)


def experiment_groups(runs: Runs, experiment: str | None) -> list[Group]:
    """Return the lines of one experiment, or of the jobs outside of any (None), in the order of its table.

    Rows come in the experiment's order, also those without jobs. Then come rows of jobs that the experiment no longer
    has (renamed since), then jobs without a row. An experiment without rows has a line per fold and seed, then their
    mean. Runs of fold=all have a line of their own below the configuration's.
    """
    jobs = runs.jobs[runs.jobs["experiment"].isna() if experiment is None else runs.jobs["experiment"] == experiment]
    ablation = runs.ablations.get(experiment or "", {})
    rows = dict.fromkeys([*(ablation.get("rows") or {}), *jobs["row"].dropna()])
    groups = [part for row in rows for part in _row_groups(row, row_label(ablation, row), jobs[jobs["row"] == row])]
    others = jobs[jobs["row"].isna()]
    if rows or experiment is None:
        return groups + _configurations(None, _validated(others)) + _on_training_cases(None, others)
    variants = _variants(others)
    return [
        part
        for variant, label in variants
        for part in _repetitions(variant, label, others[others["label"] == label], several=len(variants) > 1)
    ]


def _row_groups(row: str, label: str, jobs: pd.DataFrame) -> list[Group]:
    """Return a line per configuration of a row, an empty one if none was validated, then those of fold=all."""
    validated = _configurations(row, _validated(jobs))
    return (validated or [Group(row, label, "", jobs.iloc[:0])]) + _on_training_cases(row, jobs)


def _configurations(row: str | None, jobs: pd.DataFrame) -> list[Group]:
    return [Group(row, label, variant, jobs[jobs["label"] == label]) for variant, label in _variants(jobs)]


def _on_training_cases(row: str | None, jobs: pd.DataFrame) -> list[Group]:
    """Return the lines of the fold=all runs among jobs, one per configuration."""
    own = jobs[jobs["fold"] == TRAINED_ON_ALL]
    return [
        Group(row, f"{label}, {ON_TRAINING_CASES}", variant, own[own["label"] == label], "training")
        for variant, label in _variants(own)
    ]


def _repetitions(variant: str, label: str, jobs: pd.DataFrame, *, several: bool) -> list[Group]:
    """Return a line per fold and seed of a configuration, a line of their mean, and one of its fold=all runs."""
    prefix = f"{label}, " if several else ""
    validated, own = _validated(jobs), jobs[jobs["fold"] == TRAINED_ON_ALL]
    groups = [
        Group(None, f"{prefix}fold {fold}, seed {seed}", variant, part, "run")
        for (fold, seed), part in validated.groupby(["fold", "seed"], sort=True)
    ]
    if len(validated):
        groups.append(Group(None, f"{prefix}mean", variant, validated, "mean", label))
    if len(own):
        groups.append(Group(None, f"{prefix}{ON_TRAINING_CASES}", variant, own, "training"))
    return groups


def _validated(jobs: pd.DataFrame) -> pd.DataFrame:
    return jobs[jobs["fold"] != TRAINED_ON_ALL]


def _variants(jobs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (variant, label) of the configurations among jobs, in order of first appearance."""
    return list(dict.fromkeys(zip(jobs["variant"], jobs["label"], strict=True)))
