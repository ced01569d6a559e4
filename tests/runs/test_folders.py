"""The state of a sweep, read from files and locks alone."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from e2enet.common.errors import InputError
from e2enet.common.files import write_json
from e2enet.system.locks import claimed_folder
from e2enet.runs.folders import JobError, job_state, read_sweep, without_repeats

LINE = {
    "key": "3fa9c2d1" * 8,
    "folder": "s90-fold0-seed0-3fa9c2d1",
    "experiment": "sparsity",
    "row": "s90",
    "fold": 0,
    "seed": 0,
    "data": "phantom",
    "overrides": ["row=s90", "seed=0"],
    "training_key": "aa",
}
MANIFEST = {"version": 1, "name": "ablations", "ablations": {"sparsity": {"title": "Sparsity level"}}, "jobs": [LINE]}
STARTED = "2025-01-31T12:00:00+00:00"


def write_job(folder: Path, **content: Any) -> None:
    job = {"key": "k", "state": "running", "started": STARTED, "ended": None, "seconds": 100.0, "attempts": 2}
    write_json(folder / "job.json", job | {"host": "node1", "pid": 7, "score": None, "error": None} | content)


def test_the_manifest_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "sweep.json", MANIFEST)
    sweep = read_sweep(tmp_path)
    assert (sweep.name, sweep.ablations) == ("ablations", {"sparsity": {"title": "Sparsity level"}})
    (job,) = sweep.jobs
    assert job.folder == tmp_path / "s90-fold0-seed0-3fa9c2d1" and job.overrides == ("row=s90", "seed=0")
    assert (job.experiment, job.row, job.fold, job.seed, job.data) == ("sparsity", "s90", 0, 0, "phantom")
    assert job_state(job.folder).state == "pending"


def test_runs_without_a_sweep_are_jobs_too(tmp_path: Path) -> None:
    for name, seed in (("b", 1), ("a", 0)):
        (tmp_path / name).mkdir()
        text = f"name: phantom\nseed: {seed}\nfold: all\nrow: null\ndata:\n  name: phantom\n"
        (tmp_path / name / "config.yaml").write_text(text)
    (tmp_path / "report").mkdir()
    first, second = read_sweep(tmp_path).jobs
    assert (first.folder.name, first.seed, first.fold, first.data) == ("a", 0, "all", "phantom")
    assert first.key != second.key and second.folder.name == "b"
    assert [job.folder for job in read_sweep(tmp_path / "b").jobs] == [tmp_path / "b"]
    assert job_state(tmp_path / "a").state == "interrupted"
    with claimed_folder(tmp_path / "a"):
        assert job_state(tmp_path / "a").state == "running"
    (tmp_path / "a" / "summary.json").touch()
    assert job_state(tmp_path / "a").state == "finished"


def test_the_newest_finished_of_repeated_runs_counts(tmp_path: Path) -> None:
    for name, seed in (("1", 0), ("2", 0), ("3", 0), ("4", 1), ("5", 2), ("6", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"seed: {seed}\nrun_folder: {name}\n")
        if name in "12":
            (tmp_path / name / "summary.json").touch()
    kept = without_repeats(read_sweep(tmp_path).jobs, lambda job: job.key)
    # Seed 0: the last finished run. Seed 2 has no finished run: the last one.
    assert [job.folder.name for job in kept] == ["2", "4", "6"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "neither sweep.json of a sweep nor config.yaml of a run"),
        ("{", "not valid JSON"),
        (json.dumps(MANIFEST | {"version": 2}), "version 2, expected 1"),
        (json.dumps(MANIFEST | {"jobs": [{"key": "k"}]}), "not a sweep's manifest (KeyError: 'folder')"),
        (json.dumps([]), "not a sweep's manifest"),
    ],
)
def test_what_is_no_sweep_is_told_by_its_file(content: str | None, expected: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(InputError) as caught:
        read_sweep(tmp_path)
    assert expected in str(caught.value) and str(tmp_path) in str(caught.value)


def test_no_folder_and_a_broken_config_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_sweep(tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text("a: [1,")
    with pytest.raises(InputError, match=r"config\.yaml: cannot be read as a run's config"):
        read_sweep(tmp_path)


def test_running_is_what_somebody_holds(tmp_path: Path) -> None:
    write_job(tmp_path)
    with claimed_folder(tmp_path) as held:
        assert held
        state = job_state(tmp_path)
    waited = (datetime.now(timezone.utc) - datetime.fromisoformat(STARTED)).total_seconds()
    assert state.state == "running" and state.attempts == 2 and state.host == "node1"
    assert 100 < state.seconds <= 100 + waited


def test_a_killed_job_is_interrupted_and_its_time_ends_with_its_last_file(tmp_path: Path) -> None:
    write_job(tmp_path)
    (tmp_path / "metrics.csv").touch()
    began = datetime.fromisoformat(STARTED).timestamp()
    os.utime(tmp_path / "job.json", (began, began))
    os.utime(tmp_path / "metrics.csv", (began + 30, began + 30))
    state = job_state(tmp_path)
    assert (state.state, state.seconds, state.ended) == ("interrupted", 130.0, None)


def test_a_crash_is_told_with_its_error(tmp_path: Path) -> None:
    ended = "2025-01-31T12:01:00+00:00"
    write_job(tmp_path, state="crashed", ended=ended, error={"message": "ValueError: no", "traceback": "line"})
    state = job_state(tmp_path)
    assert state.state == "crashed" and state.error == JobError("ValueError: no", "line") and state.seconds == 100
    assert state.ended == datetime.fromisoformat(ended) and state.score is None


def test_a_strange_state_is_told_by_its_file(tmp_path: Path) -> None:
    write_job(tmp_path, state="done")
    with pytest.raises(InputError, match=r"job\.json: not the state of a job.*'done', expected one of pending"):
        job_state(tmp_path)
