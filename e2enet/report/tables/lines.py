"""The lines of an experiment's table: published, counted and obtained numbers of each row, and the tests between them.

A line holds plain values, NaN or None if unknown. `columns` says how they are shown. Dice and NSD are in percent here,
as the paper gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from e2enet.common.errors import InputError
from e2enet.report.results import effects, statistics
from e2enet.report.results.options import Options
from e2enet.report.results.runs import FINISHED, Runs
from e2enet.report.tables.differences import dataset_names
from e2enet.report.tables.groups import Group, experiment_groups
from e2enet.runs.ablations import row_setting

# Counts a row of overrides at the paper's scale: params in M, GFLOP by both conventions.
Counter = Callable[[Sequence[str], Mapping[str, Any]], Mapping[str, float]]
PERCENT = 100.0
EFFECTS = ("difference", "difference_low", "difference_high", "rank_biserial")


def experiment_lines(
    runs: Runs, experiment: str | None, options: Options, *, count: Counter, reference: str | None = None
) -> list[dict[str, Any]]:
    """Compute the lines of one experiment in the order of its rows, or of the jobs outside of any experiment (None).

    `experiment_groups` says which jobs a line stands for. Runs of fold=all have no interval, p or PT.

    Args:
        runs: The sweep.
        experiment: One of `runs.ablations`, or None.
        options: Settings of the statistics.
        count: Counts the cost of a row's overrides at a setting.
        reference: The row, configuration or line that others are tested against (`Group.names`); None: the
            experiment's, else the first.

    Raises:
        InputError: the experiment has no such line.
    """
    ablation = runs.ablations.get(experiment or "", {})
    groups = experiment_groups(runs, experiment)
    cases = [scored_cases(runs, group) for group in groups]
    lines = [
        _line(group, own, runs, options) | _published(ablation, group) | _counted(ablation, group, count)
        for group, own in zip(groups, cases, strict=True)
    ]
    _number_case_sets(lines, cases)
    where = f"experiment {experiment}" if experiment else "the sweep"
    references = _references(groups, reference or ablation.get("reference"), where)
    _add_tests(lines, groups, [statistics.case_means(own) for own in cases], references, options)
    _add_trade_off(lines, groups, options)
    return lines


def scored_cases(runs: Runs, group: Group) -> pd.DataFrame:
    """Return the lines of `Runs.cases` of the group's finished jobs, without regions."""
    return runs.cases[runs.cases["key"].isin(group.finished["key"]) & ~runs.cases["region"].astype(bool)]


def _number_case_sets(lines: Sequence[dict[str, Any]], cases: Sequence[pd.DataFrame]) -> None:
    """Add `competes_on`: what lines must share for their means to compete, classes and cases.

    A test pairs the cases that two lines share. Means of other cases have no common scale: an easy fold would win.
    """
    numbers: dict[frozenset[str], int] = {}
    for line, own in zip(lines, cases, strict=True):
        number = numbers.setdefault(frozenset(own["case"]), len(numbers) + 1)
        line["competes_on"] = f"{line['scored_on']}; cases {number}"


def _line(group: Group, cases: pd.DataFrame, runs: Runs, options: Options) -> dict[str, Any]:
    """Return what was obtained: means over runs, their spread, the interval over cases, counts."""
    finished = group.finished
    dice = PERCENT * finished["dice"].dropna()
    low, high = math.nan, math.nan
    if group.role != "training":
        low, high = statistics.bootstrap_interval(
            statistics.run_scores(cases), confidence=options.confidence, resamples=options.resamples, seed=options.seed
        )
    data = ", ".join(dict.fromkeys(dataset_names(runs, group.jobs)))
    classes = sorted({f"{label} {name}" for label, name in zip(cases["class"], cases["name"], strict=True)})
    outcomes = cases["outcome"].value_counts()
    means = finished[["nsd", "hd95", "params", "flops_exact", "flops_paper", "density"]].mean()
    measured = finished[["latency_s", "peak_bytes", "seconds"]].mean()
    return {
        "row": group.row,
        "label": group.label,
        "role": group.role,
        "data": data,
        "scored_on": f"{data}: {', '.join(classes)}",  # what lines must share to be tested
        "state": _states(group.jobs),
        "runs": len(finished),
        "jobs": len(group.jobs),
        "seeds": finished["seed"].nunique(dropna=False),
        "folds": finished["fold"].nunique(dropna=False),
        "dice": dice.mean(),
        "dice_sd": dice.std(ddof=1),
        "seed_spread": PERCENT * _seed_spread(finished),
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
        "cases": cases["case"].nunique(),
        # Structures in the references, over all runs.
        "structures": int(outcomes.get("scored", 0) + outcomes.get("missed", 0)),
        "missed": int(outcomes.get("missed", 0)),
        "invented": int(outcomes.get("invented", 0)),
    }


def _seed_spread(finished: pd.DataFrame) -> float:
    """Return the largest difference in Dice between seeds of one fold; NaN if no fold has two."""
    dice = finished.dropna(subset=["dice"]).groupby("fold")["dice"]
    spreads = (dice.max() - dice.min())[dice.size() > 1]
    return float(spreads.max()) if len(spreads) else math.nan


def _states(jobs: pd.DataFrame) -> str:
    """Return the states of a line's jobs: "2 of 2", "1 of 2, 1 crashed" or "not run"."""
    if jobs.empty:
        return "not run"
    finished = int((jobs["state"] == FINISHED).sum())
    others = jobs.loc[jobs["state"] != FINISHED, "state"].value_counts(sort=False)
    return ", ".join([f"{finished} of {len(jobs)}", *(f"{number} {state}" for state, number in others.items())])


def _published(ablation: Mapping[str, Any], group: Group) -> dict[str, Any]:
    """Return the row's published numbers and their dataset; none beside scores of training cases."""
    row = (ablation.get("rows") or {}).get(group.row) or {}
    known = {} if group.role == "training" else row.get("published") or {}
    values = {f"published_{name}": known.get(name) for name in ("params", "gflops", "dice", "nsd")}
    return {"published_on": row.get("published_on", ablation.get("published_on")) if known else None} | values


def _counted(ablation: Mapping[str, Any], group: Group, count: Counter) -> dict[str, Any]:
    """Return the row's cost at the paper's scale, if the experiment defines that scale.

    It is NaN for a row of an older version, which the experiment no longer has or whose overrides are no longer valid.
    `counted_at` names the scale; costs at different scales are not compared.
    """
    names = ("params", "gflops_paper", "gflops_exact")
    rows = ablation.get("rows") or {}
    setting = row_setting(ablation, group.row) if group.row is not None and group.row in rows else {}
    counted: Mapping[str, float] = {}
    if setting:
        with suppress(InputError):
            counted = count(rows[group.row].get("overrides", ()), setting)
    values: dict[str, Any] = {f"counted_{name}": counted.get(name, math.nan) for name in names}
    return {"counted_at": ", ".join(f"{key} {value}" for key, value in setting.items())} | values


def _references(groups: Sequence[Group], reference: str | None, where: str) -> list[int]:
    """Return the indices of the lines that others are tested against: one per configuration of the reference row."""
    compared = [index for index, group in enumerate(groups) if group.is_tested]
    if not compared:
        return []
    name = reference if reference is not None else groups[compared[0]].names[0]
    found = [index for index in compared if name in groups[index].names]
    if not found:
        known = dict.fromkeys(groups[index].names[0] for index in compared)
        raise InputError(f"reference {name!r}: {where} has no such row; expected {' | '.join(known)}")
    return found


def _add_tests(
    lines: Sequence[dict[str, Any]],
    groups: Sequence[Group],
    scores: Sequence[pd.Series],
    references: Sequence[int],
    options: Options,
) -> None:
    """Test each line against the reference's line (`_partner`), with Holm's correction over the table's tests.

    `against` is the label of that line, None if no case was scored by both.
    """
    alone = sum(group.is_tested for group in groups) < 2
    for index, line in enumerate(lines):
        # A single line has nothing to be compared with.
        line |= {"reference": index in references and not alone, "against": None, "p": math.nan, "pairs": 0}
        line |= dict.fromkeys(EFFECTS, math.nan)
        tested = groups[index].is_tested and index not in references
        partner = _partner(groups, index, references) if tested else None
        # Cases of two datasets may have the same names, and a case may be scored by classes or by regions.
        if partner is not None and line["scored_on"] == lines[partner]["scored_on"]:
            line["p"], line["pairs"] = statistics.paired_wilcoxon(scores[index], scores[partner])
            line["against"] = lines[partner]["label"] if line["pairs"] else None
            line |= _effects(statistics.paired_differences(scores[index], scores[partner]), options)
    for line, adjusted in zip(lines, statistics.holm([line["p"] for line in lines]), strict=True):
        line["p_holm"] = adjusted


def _effects(differences: np.ndarray, options: Options) -> dict[str, float]:
    """Return the effect sizes of a line, by the names of EFFECTS. Differences of Dice are in points of percent."""
    interval = effects.median_interval(
        differences, confidence=options.confidence, resamples=options.resamples, seed=options.seed
    )
    points = [PERCENT * value for value in interval]
    return dict(zip(EFFECTS, [*points, effects.rank_biserial(differences)], strict=True))


def _partner(groups: Sequence[Group], index: int, candidates: Sequence[int]) -> int | None:
    """Return the reference's line to compare with: of the same variant or the only one; without rows, the first."""
    same = [other for other in candidates if groups[other].variant == groups[index].variant]
    if groups[index].row is None:
        return candidates[0]
    return same[0] if same else candidates[0] if len(candidates) == 1 else None


def _add_trade_off(lines: Sequence[dict[str, Any]], groups: Sequence[Group], options: Options) -> None:
    """Add PT of the obtained numbers, among rows of the same classes and cases: others have no common largest Dice.

    PT is NaN for a single row, which would be its own best in everything. It is also NaN unless the options ask for it,
    since the weights are not the paper's.
    """
    for line in lines:
        line["pt"] = math.nan
    if not options.trade_off:
        return
    rows = [line for line, group in zip(lines, groups, strict=True) if group.role == "row"]
    for task in dict.fromkeys(line["competes_on"] for line in rows):
        own = [line for line in rows if line["competes_on"] == task]
        columns = ([line[name] for line in own] for name in ("dice", "params", "gflops_paper"))
        values = statistics.trade_off(*columns, accuracy=options.accuracy, cost=options.cost)
        if np.isfinite(values).sum() > 1:
            for line, value in zip(own, values, strict=True):
                line["pt"] = float(value)
