"""The lines of an experiment's table: published, counted and obtained numbers of each row, and the tests between them.

A line holds plain values, NaN or None where unknown; `columns` says how they are shown. Dice and NSD are in percent
here, as the paper gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from e2enet.common.ablations import row_setting
from e2enet.common.errors import InputError
from e2enet.report import statistics
from e2enet.report.labels import row_label
from e2enet.report.options import Options
from e2enet.report.runs import FINISHED, Runs

# Counts a row of overrides at the paper's scale: params in M, GFLOP by both conventions.
Counter = Callable[[Sequence[str], Mapping[str, Any]], Mapping[str, float]]
PERCENT = 100.0


@dataclass
class _Group:
    """Jobs of one line: repetitions of one configuration over folds and seeds."""

    row: str | None
    label: str
    variant: str
    jobs: pd.DataFrame
    role: str = "row"  # row | run (one fold and seed of it) | mean (over the runs above it)
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)  # (cases, classes), means over runs


def experiment_lines(
    runs: Runs, experiment: str | None, options: Options, *, count: Counter, reference: str | None = None
) -> list[dict[str, Any]]:
    """Lines of one experiment in the order of its rows, or of the jobs outside of any experiment (None).

    Rows without jobs have a line too. An experiment without rows has a line per fold and seed, then their mean.

    Args:
        runs: The sweep.
        experiment: One of `runs.ablations`, or None.
        options: Of the statistics.
        count: Counts a row's overrides at a setting.
        reference: The row, or the label of a line, that others are tested against; None: the experiment's, else
            the first.

    Raises:
        InputError: the experiment has no such line.
    """
    ablation = runs.ablations.get(experiment or "", {})
    groups = _groups(runs, experiment, ablation)
    for group in groups:
        keys = group.jobs.loc[group.jobs["state"] == FINISHED, "key"]
        group.scores = statistics.case_class_means(runs.cases[runs.cases["key"].isin(keys)])
    lines = [
        _line(group, runs, options) | _published(ablation, group) | _counted(ablation, group, count) for group in groups
    ]
    _add_tests(lines, groups, reference or ablation.get("reference"), f"experiment {experiment}" if experiment else "")
    _add_trade_off(lines, groups, options)
    return lines


def _groups(runs: Runs, experiment: str | None, ablation: Mapping[str, Any]) -> list[_Group]:
    jobs = runs.jobs[runs.jobs["experiment"].isna() if experiment is None else runs.jobs["experiment"] == experiment]
    rows = ablation.get("rows") or {}
    if rows:
        own = {row: jobs[jobs["row"] == row] for row in rows}
        nothing = {row: [("", row_label(ablation, row))] for row in rows}
        return [
            _Group(row, label, variant, own[row][own[row]["variant"] == variant])
            for row in rows
            for variant, label in _variants(own[row]) or nothing[row]
        ]
    groups = [_Group(None, label, variant, jobs[jobs["label"] == label]) for variant, label in _variants(jobs)]
    return groups if experiment is None else [part for group in groups for part in _repetitions(group, len(groups))]


def _variants(jobs: pd.DataFrame) -> list[tuple[str, str]]:
    """(variant, label) of the configurations among jobs, in order of first appearance."""
    return list(dict.fromkeys(zip(jobs["variant"], jobs["label"], strict=True)))


def _repetitions(group: _Group, configurations: int) -> list[_Group]:
    """A group per fold and seed, and the group itself as their mean."""
    prefix = f"{group.label}, " if configurations > 1 else ""
    runs = [
        _Group(None, f"{prefix}fold {fold}, seed {seed}", group.variant, jobs, "run")
        for (fold, seed), jobs in group.jobs.groupby(["fold", "seed"], sort=True)
    ]
    return [*runs, _Group(None, f"{prefix}mean", group.variant, group.jobs, "mean")]


def _line(group: _Group, runs: Runs, options: Options) -> dict[str, Any]:
    """What was obtained: means over runs, their spread, the interval over cases, counts."""
    finished = group.jobs[group.jobs["state"] == FINISHED]
    cases = runs.cases[runs.cases["key"].isin(finished["key"]) & ~runs.cases["region"].astype(bool)]
    dice = PERCENT * finished["dice"].dropna()
    low, high = statistics.bootstrap_interval(
        group.scores, confidence=options.confidence, resamples=options.resamples, seed=options.seed
    )
    outcomes = cases["outcome"].value_counts()
    means = finished[["nsd", "hd95", "params", "flops_exact", "flops_paper", "density"]].mean()
    measured = finished[["latency_s", "peak_bytes", "seconds"]].mean()
    return {
        "row": group.row,
        "label": group.label,
        "role": group.role,
        "data": ", ".join(dict.fromkeys(group.jobs["data"])),
        "state": _states(group.jobs),
        "runs": len(finished),
        "jobs": len(group.jobs),
        "dice": dice.mean(),
        "dice_sd": dice.std(ddof=1),
        "dice_low": PERCENT * low,
        "dice_high": PERCENT * high,
        "nsd": PERCENT * means["nsd"],
        "hd95": means["hd95"],
        "params": means["params"] / 1e6,
        "gflops_paper": means["flops_paper"] / 1e9,
        "gflops_exact": means["flops_exact"] / 1e9,
        "density": means["density"],
        "latency_s": measured["latency_s"],
        "peak_bytes": measured["peak_bytes"],
        "seconds": measured["seconds"],
        "cases": len(group.scores),
        # Of structures that the references hold, over all runs.
        "structures": int(outcomes.get("scored", 0) + outcomes.get("missed", 0)),
        "missed": int(outcomes.get("missed", 0)),
        "invented": int(outcomes.get("invented", 0)),
    }


def _states(jobs: pd.DataFrame) -> str:
    """How a line's jobs stand, where not all are finished: "1 of 2, 1 crashed"."""
    if jobs.empty:
        return "not run"
    finished = int((jobs["state"] == FINISHED).sum())
    others = jobs.loc[jobs["state"] != FINISHED, "state"].value_counts(sort=False)
    return ", ".join([f"{finished} of {len(jobs)}", *(f"{number} {state}" for state, number in others.items())])


def _published(ablation: Mapping[str, Any], group: _Group) -> dict[str, Any]:
    rows = ablation.get("rows") or {}
    known = (rows.get(group.row) or {}).get("published") or {}
    return {f"published_{name}": known.get(name) for name in ("params", "gflops", "dice", "nsd")}


def _counted(ablation: Mapping[str, Any], group: _Group, count: Counter) -> dict[str, Any]:
    """The row's cost at the paper's scale, where the experiment says what that is.

    It stays blank for a row of an older version, whose overrides name what there no longer is.
    """
    names = ("params", "gflops_paper", "gflops_exact")
    setting = row_setting(ablation, group.row) if group.row is not None and ablation.get("rows") else {}
    counted: Mapping[str, float] = {}
    if setting:
        with suppress(InputError):
            counted = count(ablation["rows"][group.row].get("overrides", ()), setting)
    return {f"counted_{name}": counted.get(name, math.nan) for name in names}


def _add_tests(lines: Sequence[dict[str, Any]], groups: Sequence[_Group], reference: str | None, where: str) -> None:
    """Each line against the reference's line of the same variant; Holm's correction over the tests of the table."""
    compared = [index for index, group in enumerate(groups) if group.role != "run"]
    first = groups[compared[0]] if compared else None
    name = reference if reference is not None else (first.row or first.label if first else None)
    candidates = [index for index in compared if name in (groups[index].row, groups[index].label)]
    if first is not None and not candidates:
        known = dict.fromkeys(groups[index].row or groups[index].label for index in compared)
        raise InputError(f"reference {name!r}: {where or 'the sweep'} has no such row; expected {' | '.join(known)}")
    for index, line in enumerate(lines):
        # A line alone is compared with nothing.
        line |= {"reference": index in candidates and len(compared) > 1, "p": math.nan, "pairs": 0}
        partner = _partner(groups, index, candidates) if index in compared and index not in candidates else None
        # Cases of two datasets may bear the same names.
        if partner is not None and line["data"] == lines[partner]["data"]:
            line["p"], line["pairs"] = statistics.paired_wilcoxon(groups[index].scores, groups[partner].scores)
    for line, adjusted in zip(lines, statistics.holm([line["p"] for line in lines]), strict=True):
        line["p_holm"] = adjusted


def _partner(groups: Sequence[_Group], index: int, candidates: Sequence[int]) -> int | None:
    """The reference's line to compare with: of the same variant, or the only one there is."""
    same = [other for other in candidates if groups[other].variant == groups[index].variant]
    if groups[index].row is None:
        return candidates[0]
    return same[0] if same else candidates[0] if len(candidates) == 1 else None


def _add_trade_off(lines: Sequence[dict[str, Any]], groups: Sequence[_Group], options: Options) -> None:
    """PT of the obtained numbers, among rows of one dataset: Dice of different tasks have no common largest.

    A row alone is its own best in everything and says nothing.
    """
    for line in lines:
        line["pt"] = math.nan
    for data in dict.fromkeys(line["data"] for line in lines):
        own = [line for line, group in zip(lines, groups, strict=True) if line["data"] == data and group.role == "row"]
        columns = ([line[name] for line in own] for name in ("dice", "params", "gflops_paper"))
        values = statistics.trade_off(*columns, accuracy=options.accuracy, cost=options.cost)
        if np.isfinite(values).sum() > 1:
            for line, value in zip(own, values, strict=True):
                line["pt"] = float(value)
