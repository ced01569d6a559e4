"""Which jobs stand in which line of an experiment's table: repetitions of one configuration over folds and seeds."""

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
        row: Its row of the experiment; None where there are no rows.
        label: What the line is called.
        variant: What tells its configuration from others of its row.
        jobs: Its lines of `Runs.jobs`; empty where the row was not run.
        role: row | run (one fold and seed of a configuration) | mean (over the runs above it) | training (runs of
            fold=all: their scores are of the cases that they were trained on, and nothing may be compared with them).
        configuration: What the configuration is called where a line's label says more, as that of a mean does.
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
        """What a reference may call it; the first is the one to list."""
        return (self.row or self.configuration or self.label, self.label)


def experiment_groups(runs: Runs, experiment: str | None) -> list[Group]:
    """The lines of one experiment, or of the jobs outside of any (None), in the order of its table.

    Rows come in the experiment's order, also those without jobs; then rows that jobs have and the experiment no longer
    (renamed since), then jobs without a row. An experiment without rows has a line per fold and seed, then their mean.
    Runs of fold=all have a line of their own below the configuration's.
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
    """A line per configuration of a row; one without jobs where none was validated."""
    validated = _configurations(row, _validated(jobs))
    return (validated or [Group(row, label, "", jobs.iloc[:0])]) + _on_training_cases(row, jobs)


def _configurations(row: str | None, jobs: pd.DataFrame) -> list[Group]:
    return [Group(row, label, variant, jobs[jobs["label"] == label]) for variant, label in _variants(jobs)]


def _on_training_cases(row: str | None, jobs: pd.DataFrame) -> list[Group]:
    """Lines of the fold=all runs among jobs, a line per configuration."""
    own = jobs[jobs["fold"] == TRAINED_ON_ALL]
    return [
        Group(row, f"{label}, {ON_TRAINING_CASES}", variant, own[own["label"] == label], "training")
        for variant, label in _variants(own)
    ]


def _repetitions(variant: str, label: str, jobs: pd.DataFrame, *, several: bool) -> list[Group]:
    """A line per fold and seed of one of several configurations, their mean, and a line of the fold=all runs."""
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
    """(variant, label) of the configurations among jobs, in order of first appearance."""
    return list(dict.fromkeys(zip(jobs["variant"], jobs["label"], strict=True)))
