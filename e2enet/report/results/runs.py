"""Load a sweep folder as tables: its jobs, their scores per case and class, their curves, their configs.

Everything is read from the files of the jobs (see `read_sweep` and `job_state`), also while they run, and on any
machine. Tables, statistics and pictures of the report read only `Runs`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from e2enet.report.results.measured import read_measured
from e2enet.report.results.row_labels import job_labels
from e2enet.report.results.run_files import (
    METRICS,
    METRICS_FILE,
    SCORES_FILE,
    Progress,
    read_metrics,
    read_progress,
    read_record,
    read_scores,
)
from e2enet.runs.folders import (
    CONFIG_FILE,
    COST_FILE,
    SUMMARY_FILE,
    JobState,
    Sweep,
    job_state,
    read_config,
    read_sweep,
    without_repeats,
)

COST_KEYS = ("exact", "paper", "density", "patch_size")
MEASURED = ("latency_s", "peak_bytes")
FINISHED = "finished"
JOB_COLUMNS = (
    *("experiment", "row", "label", "variant", "key", "folder", "fold", "seed", "data", "state"),
    *("epoch", "epochs", "best", "seconds", "dice", "nsd", "hd95"),
    *("params", "flops_exact", "flops_paper", "density", *MEASURED, "error"),
)
CASE_COLUMNS = ("key", "case", "class", "name", "dice", "nsd", "hd95", "outcome", "region")


@dataclass(frozen=True)
class Runs:
    """A sweep as tables; unknown numbers are NaN, unknown texts None.

    Attributes:
        folder: The sweep folder.
        name: Its name.
        ablations: {experiment: its `ablation` section}, as in the manifest.
        jobs: A line per experiment, row and job (`JOB_COLUMNS`), in the manifest's order. A job of several experiments
            has a line in each. `label` names the job's line in the report's table, `variant` tells it from other lines
            of its row. `epoch` counts epochs done. `best` is the score that chose best.ckpt. `dice`, `nsd` (in [0, 1])
            and `hd95` (in mm) are the means in summary.json. FLOPs are those of one patch. `latency_s` and `peak_bytes`
            come from measured.json. `error` is the message of a crashed job.
        cases: A line per job, validation case and class of finished jobs (`CASE_COLUMNS`). `outcome` is scored, missed,
            invented or absent. `region` marks united classes, which no mean includes.
        configs: {key: config.yaml as plain containers}, of the jobs that were started.
        costs: {key: cost.json}, of the jobs that began to train.
    """

    folder: Path
    name: str
    ablations: Mapping[str, Mapping[str, Any]]
    jobs: pd.DataFrame
    cases: pd.DataFrame
    configs: Mapping[str, Mapping[str, Any]]
    costs: Mapping[str, Mapping[str, Any]]

    def curves(self, key: str) -> pd.DataFrame:
        """Read metrics.csv of a job: a line per logger write, NaN for unwritten cells; empty before the first."""
        return read_metrics(self.job_folder(key) / METRICS_FILE)

    def job_folder(self, key: str) -> Path:
        """Return the folder of a job; KeyError if the sweep has no such key."""
        folders = self.jobs.loc[self.jobs["key"] == key, "folder"]
        if folders.empty:
            raise KeyError(f"{self.folder}: no job of key {key!r}")
        return Path(folders.iloc[0])


def load_runs(folder: str | Path) -> Runs:
    """Read a sweep folder, the folder of a plain run, or a folder of such runs.

    Raises:
        InputError: there is no sweep, or a file in it is malformed.
    """
    sweep = read_sweep(folder)
    # A manifest names no job twice; plain runs may repeat each other.
    sweep = replace(sweep, jobs=without_repeats(sweep.jobs, lambda job: (job.experiment, job.row, job.key)))
    measured = read_measured(sweep.folder)
    folders = {job.key: job.folder for job in sweep.jobs}
    configs = {key: read_config(path) for key, path in folders.items() if (path / CONFIG_FILE).is_file()}
    costs = {
        key: read_record(path / COST_FILE, COST_KEYS) for key, path in folders.items() if (path / COST_FILE).is_file()
    }
    states = {key: job_state(path) for key, path in folders.items()}
    # A job that runs again may still hold the scores of its earlier attempt.
    finished = {key: path for key, path in folders.items() if states[key].state == FINISHED}
    facts = {
        key: {
            **_state_columns(states[key], read_progress(path, configs.get(key))),
            **_mean_scores(finished.get(key)),
            **_cost_columns(costs.get(key)),
            **{name: measured.get(key, {}).get(name, math.nan) for name in MEASURED},
        }
        for key, path in folders.items()
    }
    return Runs(
        folder=sweep.folder,
        name=sweep.name,
        ablations=sweep.ablations,
        jobs=_job_table(sweep, facts),
        cases=_case_table(finished),
        configs=configs,
        costs=costs,
    )


def _job_table(sweep: Sweep, facts: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    lines = [
        {
            "experiment": job.experiment,
            "row": job.row,
            "label": label.text,
            "variant": label.variant,
            "key": job.key,
            "folder": str(job.folder),
            "fold": job.fold,
            "seed": job.seed,
            "data": job.data,
            **facts[job.key],
        }
        for job, label in zip(sweep.jobs, job_labels(sweep), strict=True)
    ]
    table = pd.DataFrame(lines, columns=list(JOB_COLUMNS))
    texts = {
        name: "object" for name in ("experiment", "row", "label", "variant", "key", "folder", "fold", "data", "error")
    }
    # None stays None: pandas would turn it into NaN in a column of texts.
    return table.astype(texts).where(lambda frame: frame.notna() | ~frame.columns.isin(texts), None)


def _state_columns(state: JobState, progress: Progress) -> dict[str, Any]:
    return {
        "state": state.state,
        "epoch": progress.epoch,
        "epochs": progress.epochs,
        "best": progress.best,
        "seconds": state.seconds or math.nan,  # not recorded by a plain run
        "error": None if state.error is None else state.error.message,
    }


def _mean_scores(folder: Path | None) -> dict[str, float]:
    """Read the means of summary.json; NaN without one, as for a run that predicts nothing."""
    if folder is None or not (folder / SUMMARY_FILE).is_file():
        return dict.fromkeys(METRICS, math.nan)
    means = read_record(folder / SUMMARY_FILE, ("mean", "classes"))["mean"]
    return {name: math.nan if means[name] is None else float(means[name]) for name in METRICS}


def _cost_columns(cost: Mapping[str, Any] | None) -> dict[str, float]:
    if cost is None:
        return dict.fromkeys(("params", "flops_exact", "flops_paper", "density"), math.nan)
    return {
        "params": float(cost["exact"]["params"]),
        "flops_exact": float(cost["exact"]["flops"]),
        "flops_paper": float(cost["paper"]["flops"]),
        "density": float(cost["density"]),
    }


def _case_table(folders: Mapping[str, Path]) -> pd.DataFrame:
    tables = [read_scores(path).assign(key=key) for key, path in folders.items() if (path / SCORES_FILE).is_file()]
    if not tables:
        return pd.DataFrame(columns=list(CASE_COLUMNS))
    return pd.concat(tables, ignore_index=True)[list(CASE_COLUMNS)]
