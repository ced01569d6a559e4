"""Watching a sweep: the output on a terminal and in a log file, and when it ends."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from e2enet.common.console import PlainConsole
from e2enet.report import watch
from tests.report.conftest import JOBS, job_record, write_job, write_metrics

INTERRUPTED, PENDING = JOBS[5], JOBS[7]


def _print_to(monkeypatch: pytest.MonkeyPatch, console: PlainConsole) -> None:
    for name in ("e2enet.report.watch.console", "e2enet.common.console.console"):
        monkeypatch.setattr(name, console)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Output to a log file."""
    stream = io.StringIO()
    _print_to(monkeypatch, PlainConsole(file=stream, width=60))
    return stream


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Output to a terminal of 12 lines."""
    stream = io.StringIO()
    _print_to(monkeypatch, PlainConsole(file=stream, force_terminal=True, width=110, height=12, color_system=None))
    return stream


class Jobs:
    """Change the sweep as running jobs would, one step per wait."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.waits = folder, 0

    def __call__(self, seconds: float) -> None:
        assert seconds == 7
        self.waits += 1
        if self.waits == 1:
            write_metrics(self.folder / INTERRUPTED.folder / "metrics.csv", replace(INTERRUPTED, epochs_done=3))
        elif self.waits == 3:  # the second wait changes nothing
            write_job(self.folder / INTERRUPTED.folder, replace(INTERRUPTED, state="finished", epochs_done=4))
            write_job(self.folder / PENDING.folder, replace(PENDING, state="crashed", error="no\nmemory"))


def test_a_log_file_gets_a_line_per_change(sweep_folder: Path, printed: io.StringIO) -> None:
    jobs = Jobs(sweep_folder)
    assert watch.watch_sweep(sweep_folder, 7, wait=jobs)
    assert jobs.waits == 3
    assert printed.getvalue().splitlines() == [
        *(
            f"{row}, fold 0, seed {seed}: finished, epoch 4/4, best Dice {best}, 0:05:00"
            for row, seed, best in FINISHED
        ),
        "s70, fold 0, seed 1: interrupted, epoch 2/4, best Dice 40.00 % (patches), 0:05:00",
        "dense, fold 0, seed 0: crashed, epoch 1/4, best Dice 20.00 % (patches), 0:05:00, loss is nan",
        "dense, fold 0, seed 1: pending",
        "s70, fold 0, seed 1: interrupted, epoch 3/4, best Dice 60.00 % (patches), 0:05:00",
        "s70, fold 0, seed 1: finished, epoch 4/4, best Dice 80.00 %, 0:05:00",
        "dense, fold 0, seed 1: crashed, epoch 0/4, 0:05:00, no",
        "all jobs have ended: 2 crashed, 6 finished",
    ]


FINISHED = [
    ("s90", 0, "80.00 %"),
    ("s90", 1, "81.00 %"),
    ("s80", 0, "85.00 %"),
    ("s80", 1, "86.00 %"),
    ("s70", 0, "86.00 %"),
]


def test_a_terminal_gets_a_table_of_what_matters_most(sweep_folder: Path, terminal: io.StringIO) -> None:
    watch.watch_sweep(sweep_folder, 7, wait=Jobs(sweep_folder))
    first = terminal.getvalue().split("best Dice")[1]
    # Four of the eight jobs fit into 12 lines. Jobs without a good end come before finished ones.
    shown = [line for line in first.splitlines() if line.startswith("│")]
    assert [next(state for state in watch.ORDER if state in line) for line in shown] == [
        "crashed",
        "interrupted",
        "pending",
        "finished",
    ]
    assert "1 crashed, 1 interrupted, 1 pending, 5 finished; 4 more jobs" in first
    assert terminal.getvalue().rstrip().endswith("all jobs have ended: 2 crashed, 6 finished")


def test_names_are_no_markup(sweep_folder: Path, terminal: io.StringIO) -> None:
    record = job_record(JOBS[6]) | {"error": {"message": "[/bold] [link=x]y", "traceback": ""}}
    (sweep_folder / JOBS[6].folder / "job.json").write_text(json.dumps(record))
    watch.watch_sweep(sweep_folder, 7, wait=Jobs(sweep_folder))
    assert "[/bold] [link=x]y" in terminal.getvalue()


def test_ctrl_c_ends_the_watching(sweep_folder: Path, printed: io.StringIO) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    assert not watch.watch_sweep(sweep_folder, 7, wait=interrupt)
    assert printed.getvalue().splitlines()[-1] == "stopped watching; the jobs go on"


def test_a_job_of_two_rows_is_one_job(sweep_folder: Path) -> None:
    path = sweep_folder / "sweep.json"
    manifest = json.loads(path.read_text())
    manifest["jobs"].append({**manifest["jobs"][0], "row": "again"})
    path.write_text(json.dumps(manifest))
    statuses = watch.read_statuses(sweep_folder)
    assert [status.job.row for status in statuses] == ["s90", "s90", "s80", "s80", "s70", "s70", "dense", "dense"]
