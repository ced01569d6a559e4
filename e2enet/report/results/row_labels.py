"""Label the lines of a table: the row's label, and the settings in which jobs of one row differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from e2enet.runs.folders import Sweep, SweepJob
from e2enet.runs.variants import configuration_settings, differing


@dataclass(frozen=True)
class Label:
    """`text` names a line of a table; `variant` is the part of it that tells configurations of one row apart."""

    text: str
    variant: str


def job_labels(sweep: Sweep) -> list[Label]:
    """Return a label per job of the sweep. Jobs of an experiment with the same label repeat one configuration.

    The label is the row's label, or the name of the experiment or sweep if there are no rows. If the jobs of an
    experiment differ in more than row, fold and seed, the settings that differ follow in brackets. Without rows, these
    settings alone are the label.
    """
    groups: dict[str | None, list[int]] = defaultdict(list)
    for index, job in enumerate(sweep.jobs):
        groups[job.experiment].append(index)
    settings = configuration_settings(sweep.jobs)
    labels = [Label("", "")] * len(sweep.jobs)
    for members in groups.values():
        variants = differing([settings[index] for index in members])
        for index, variant in zip(members, variants, strict=True):
            labels[index] = Label(_text(sweep, sweep.jobs[index], variant), variant)
    return labels


def row_label(ablation: Mapping[str, Any], row: str) -> str:
    """Return the label that the experiment gives a row, else the row's name."""
    entry = (ablation.get("rows") or {}).get(row) or {}
    return str(entry.get("label", row))


def _text(sweep: Sweep, job: SweepJob, variant: str) -> str:
    if job.row is None:
        return variant or job.experiment or sweep.name
    name = row_label(sweep.ablations.get(job.experiment or "", {}), job.row)
    return f"{name} ({variant})" if variant else name
