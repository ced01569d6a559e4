"""The rows of an experiment as pictures need them: a line of its table, the jobs, and one style for all pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from e2enet.report.pictures.style import RowStyle, row_styles
from e2enet.report.results.runs import FINISHED, Runs
from e2enet.report.tables.groups import experiment_groups


@dataclass(frozen=True)
class Row:
    """One line of the table: the repetitions (folds, seeds) of one configuration.

    Attributes:
        label: As in the table.
        jobs: Its lines of `Runs.jobs`; empty if the row was not run.
        style: Colour, marker and dashes in every picture of the experiment.
        is_reference: Whether others are compared with it.
        line: Its numbers, as `experiment_lines` gives them.
    """

    label: str
    jobs: pd.DataFrame
    style: RowStyle
    is_reference: bool = False
    line: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> pd.DataFrame:
        """The jobs that ended well."""
        return self.jobs[self.jobs["state"] == FINISHED]

    @property
    def is_validated(self) -> bool:
        """Whether its scores are of cases that it was not trained on."""
        return self.line.get("role") != "training"

    @property
    def with_curves(self) -> pd.DataFrame:
        """The jobs whose curves represent the row: the finished ones, or all if none is finished."""
        return self.jobs if self.finished.empty else self.finished


def picture_rows(runs: Runs, experiment: str | None, lines: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the rows of an experiment (None: the jobs outside of any) in the order of its table's lines.

    `lines` are those of `experiment_lines`. If the table has a line per fold and seed, a row is their mean. The first
    line that others are tested against is the reference.
    """
    groups = zip(experiment_groups(runs, experiment), lines, strict=True)
    shown = [(group, line) for group, line in groups if group.role != "run"]
    reference = next((index for index, (_, line) in enumerate(shown) if line["reference"]), None)
    return [
        Row(_label(line), group.jobs, style, index == reference, line)
        for index, ((group, line), style) in enumerate(zip(shown, row_styles(len(shown), reference), strict=True))
    ]


def _label(line: Mapping[str, Any]) -> str:
    return "mean of all runs" if line["role"] == "mean" and line["label"] == "mean" else str(line["label"])
