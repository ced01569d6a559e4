"""A sweep folder as jobs leave it, written without training: all files in the real format, jobs in every state."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from e2enet.common.configs import compose_config

CLASSES = {1: "anterior", 2: "posterior"}
CASES = [f"hippocampus_{number:03d}" for number in range(1, 9)]
DIAGONAL = 90.5  # mm: the HD95 of a structure that only one of the two images has
FLOWS = ("forward", "up", "down")
ABLATION: dict[str, Any] = {
    "title": "Sparsity level",
    "published_on": "AMOS-CT",
    "setting": {
        "in_channels": 1,
        "num_classes": 16,
        "patch_size": [32, 32, 32],
        "strides": [[2, 2, 2], [2, 2, 2], [2, 2, 2]],
    },
    "reference": "s80",
    "rows": {
        "s90": {
            "label": "S = 0.9",
            "overrides": ["dsff.density=0.1"],
            "published": {"params": 7.64, "gflops": 492.29, "dice": 89.6},
        },
        "s80": {
            "label": "S = 0.8",
            "overrides": ["dsff.density=0.2"],
            "published": {"params": 9.44, "gflops": 778.74, "dice": 90.3},
        },
        "s70": {
            "label": "S = 0.7",
            "overrides": ["dsff.density=0.3"],
            "published": {"params": 11.23, "gflops": 969.32, "dice": "90.1-90.2"},
        },
        "dense": {"label": "S = 0", "overrides": ["dsff=dense"], "published": {"params": 23.9, "gflops": 3069.55}},
        "s50": {"label": "S = 0.5", "overrides": ["dsff.density=0.5"]},
    },
}


@dataclass(frozen=True)
class FakeJob:
    """A job to write. Its cases score about `dice`; `overrides` are those of the command line."""

    row: str | None
    seed: int = 0
    fold: int | str = 0
    dice: float = 0.8
    state: str = "finished"
    experiment: str | None = "sparsity"
    density: float = 0.2
    epochs: int = 4
    epochs_done: int = 4
    error: str | None = None
    overrides: tuple[str, ...] = ("training=small", "data=msd", "data.name=Task04_Hippocampus")

    @property
    def key(self) -> str:
        return f"{self.row or 'job'}-{self.fold}-{self.seed}-{self.density}".encode().hex()

    @property
    def folder(self) -> str:
        return f"{self.row or 'job'}-fold{self.fold}-seed{self.seed}-{self.key[-8:]}"


# Two seeds of four rows: five jobs finished, one was interrupted (running, if its lock is held), one crashed, one is
# pending.
JOBS = (
    FakeJob("s90", 0, dice=0.80, density=0.1),
    FakeJob("s90", 1, dice=0.81, density=0.1),
    FakeJob("s80", 0, dice=0.85),
    FakeJob("s80", 1, dice=0.86),
    FakeJob("s70", 0, dice=0.86, density=0.3),
    FakeJob("s70", 1, density=0.3, state="interrupted", epochs_done=2),
    FakeJob("dense", 0, density=1.0, state="crashed", epochs_done=1, error="loss is nan\nat step <7>"),
    FakeJob("dense", 1, density=1.0, state="pending", epochs_done=0),
)


@pytest.fixture(scope="session")
def written_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep that `sweep_folder` copies. Tests must not change it."""
    return write_sweep(tmp_path_factory.mktemp("sweeps") / "sweep", JOBS, {"sparsity": ABLATION})


@pytest.fixture
def sweep_folder(written_sweep: Path, tmp_path: Path) -> Path:
    """A sweep of experiment `sparsity`: finished, interrupted, crashed and pending jobs; row s50 has none."""
    return shutil.copytree(written_sweep, tmp_path / "sweep")


def write_sweep(folder: Path, jobs: tuple[FakeJob, ...], ablations: dict[str, Any]) -> Path:
    """Write sweep.json and a folder per job that is not pending."""
    folder.mkdir(parents=True)
    entries = [
        {
            "key": job.key,
            "folder": job.folder,
            "experiment": job.experiment,
            "row": job.row,
            "fold": job.fold,
            "seed": job.seed,
            "data": "Task04_Hippocampus",
            "overrides": [*job.overrides, f"seed={job.seed}", f"fold={job.fold}"],
        }
        for job in jobs
    ]
    manifest = {"version": 1, "name": folder.name, "ablations": ablations, "jobs": entries}
    (folder / "sweep.json").write_text(json.dumps(manifest))
    for job in jobs:
        if job.state != "pending":
            write_job(folder / job.folder, job)
    return folder


def write_job(folder: Path, job: FakeJob, *, with_state: bool = True) -> Path:
    """Write a run folder as train.py does. Without job.json it is a run outside of any sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    own = ABLATION["rows"][job.row]["overrides"] if job.row else []
    given = [*job.overrides, f"seed={job.seed}", f"fold={job.fold}", f"training.epochs={job.epochs}"]
    config = compose_config([*given, *own, f"run_folder={folder}"])
    OmegaConf.save(OmegaConf.create(OmegaConf.to_container(config, resolve=True)), folder / "config.yaml")
    write_metrics(folder / "metrics.csv", job)
    cost = {"params": round(1e6 * (1 + job.density)), "flops": round(2e9 * (1 + job.density))}
    paper = {"params": cost["params"], "flops": 2 * cost["flops"]}
    content = {"patch_size": [16, 32, 32], "density": job.density, "exact": cost, "paper": paper}
    (folder / "cost.json").write_text(json.dumps(content))
    if job.state == "finished":
        write_scores(folder, job)
    if with_state:
        (folder / "job.json").write_text(json.dumps(job_record(job)))
    return folder


def job_record(job: FakeJob) -> dict[str, Any]:
    """Return the content of job.json."""
    ended = None if job.state in ("running", "interrupted") else "2026-01-01T10:05:00+00:00"
    error = None if job.error is None else {"message": job.error, "traceback": f"Traceback ..\n{job.error}"}
    return {
        "key": job.key,
        "state": job.state,
        "started": "2026-01-01T10:00:00+00:00",
        "ended": ended,
        "seconds": 300.0,
        "attempts": 1,
        "host": "elsewhere",
        "pid": 1,
        "error": error,
    }


def write_metrics(path: Path, job: FakeJob) -> None:
    """Write metrics.csv: a validation and a training line per epoch; scores of whole cases in the last epoch only."""
    lines: list[dict[str, Any]] = []
    for epoch in range(job.epochs_done):
        step = 2 * epoch + 1
        share = (epoch + 1) / job.epochs
        names = ["", *(f"_{name}" for name in CLASSES.values())]
        scores = {f"val/dice{name}": job.dice * share for name in names}
        if epoch + 1 == job.epochs:
            scores |= {f"val_full/dice{name}": job.dice for name in names}
        lines.append({"epoch": epoch, "step": step, **scores})
        masks = {"density": job.density, "ever_active": min(1.0, job.density * (1 + share)), "fraction": 1 - share}
        masks |= {f"share_{flow}": 1 / 3 for flow in FLOWS} | {f"density_{flow}": job.density for flow in FLOWS}
        masks |= {"churn": 0.4 * (1 - share)} if epoch else {}
        times = {"time/step": 0.2, "time/data_share": 0.05}
        logged = {"train/loss": 2 - share, "train/lr": 0.003 * (1 - share), **times}
        lines.append({"epoch": epoch, "step": step, **logged, **{f"dsff/{name}": v for name, v in masks.items()}})
    columns = sorted({name for line in lines for name in line})
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(lines)


def case_scores(job: FakeJob) -> list[dict[str, Any]]:
    """Return the lines of scores.csv. Seed 0 misses class 2 of the first case; the last case has no class 2."""
    random = np.random.default_rng([job.seed, round(100 * job.density)])
    lines = []
    for case in CASES:
        for label, name in CLASSES.items():
            dice = float(np.clip(job.dice + random.normal(0, 0.01), 0, 1))
            values: tuple[Any, Any, Any, str] = (dice, min(1.0, dice + 0.05), 10 * (1 - dice), "scored")
            if (case, label) == (CASES[0], 2) and job.seed == 0:
                values = (0.0, 0.0, DIAGONAL, "missed")
            elif (case, label) == (CASES[-1], 2):
                values = ("", "", "", "absent")
            entry = dict(zip(("dice", "nsd", "hd95", "outcome"), values, strict=True))
            lines.append({"case": case, "class": label, "name": name, **entry})
    return lines


def write_scores(folder: Path, job: FakeJob) -> None:
    """Write scores.csv and summary.json from `case_scores`."""
    lines = case_scores(job)
    with (folder / "scores.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    classes = {}
    for label, name in CLASSES.items():
        counted = [line for line in lines if line["class"] == label and line["outcome"] != "absent"]
        means = {metric: float(np.mean([line[metric] for line in counted])) for metric in ("dice", "nsd", "hd95")}
        missed = sum(line["outcome"] == "missed" for line in counted)
        absent = len(CASES) - len(counted)
        counts = {"n": len(counted), "absent": absent, "missed": missed, "invented": 0}
        classes[str(label)] = {"name": name, **means, **counts}
    means = {
        metric: float(np.mean([entry[metric] for entry in classes.values()])) for metric in ("dice", "nsd", "hd95")
    }
    summary = {"n_cases": len(CASES), "mean": means, "classes": classes, "nsd_tolerance_mm": 1.0}
    (folder / "summary.json").write_text(json.dumps(summary))
