"""Show a live table of a sweep's jobs from their files, on any machine, while the jobs run or afterwards.

On a terminal the table is redrawn in place; in a log file there is one line per change of a job's state or epoch.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from rich.live import Live
from rich.table import Table
from rich.text import Text

from e2enet.common.console import console, say
from e2enet.report.results.run_files import Progress, read_progress
from e2enet.runs.folders import CONFIG_FILE, SweepJob, job_state, read_config, read_sweep

# A job in one of these states stays in it until the sweep is started again.
ENDED = ("finished", "crashed")
# The order in which jobs are shown if the terminal has too few lines for all.
ORDER = ("running", "crashed", "interrupted", "pending", "finished")
COLOURS = {"running": "cyan", "finished": "green", "crashed": "red", "interrupted": "yellow", "pending": "dim"}
AROUND = 8  # lines of a terminal that are not jobs: title, heading, rules, the prompt


@dataclass(frozen=True)
class JobStatus:
    """The state and progress of a job."""

    job: SweepJob
    state: str
    progress: Progress
    seconds: float
    error: str

    @property
    def name(self) -> str:
        """Row, fold and seed in words."""
        return ", ".join([*([self.job.row] if self.job.row else []), f"fold {self.job.fold}", f"seed {self.job.seed}"])

    @property
    def epochs(self) -> str:
        """Epochs done of all, "3/20"; "" before the first."""
        done, of = self.progress.epoch, self.progress.epochs
        return "" if math.isnan(done) or math.isnan(of) else f"{done:.0f}/{of:.0f}"

    @property
    def best(self) -> str:
        """The best score so far, in percent; that of patches, marked so, until whole cases have been validated."""
        if not math.isnan(self.progress.best):
            return f"{100 * self.progress.best:.2f} %"
        return "" if math.isnan(self.progress.best_patches) else f"{100 * self.progress.best_patches:.2f} % (patches)"

    @property
    def elapsed(self) -> str:
        """Hours, minutes and seconds of all attempts; "" before the first."""
        return str(timedelta(seconds=round(self.seconds))) if self.seconds else ""


def watch_sweep(folder: str | Path, refresh: float, *, wait: Callable[[float], None] = time.sleep) -> bool:
    """Show the jobs of a sweep until all are finished or crashed; return True then.

    Args:
        folder: A folder that `read_sweep` reads.
        refresh: Seconds between two reads of the files.
        wait: Function that waits the given seconds.

    Ctrl-C ends the watching, not the jobs, and returns False.

    Raises:
        InputError: there is no sweep.
    """
    statuses = read_statuses(folder)
    try:
        if console.is_terminal:
            with Live(_table(folder, statuses), console=console, auto_refresh=False) as live:
                while not _all_ended(statuses):
                    wait(refresh)
                    statuses = read_statuses(folder)
                    live.update(_table(folder, statuses), refresh=True)
        else:
            said: dict[Path, str] = {}
            _say_changes(statuses, said)
            while not _all_ended(statuses):
                wait(refresh)
                statuses = read_statuses(folder)
                _say_changes(statuses, said)
    except KeyboardInterrupt:
        say("stopped watching; the jobs go on")
        return False
    say(f"all jobs have ended: {_counts(statuses)}")
    return True


def read_statuses(folder: str | Path) -> list[JobStatus]:
    """Read the status of each job of a sweep, in the manifest's order; a job of several rows comes once."""
    jobs: dict[Path, SweepJob] = {}
    for job in read_sweep(folder).jobs:
        jobs.setdefault(job.folder, job)
    return [_status(job) for job in jobs.values()]


def _status(job: SweepJob) -> JobStatus:
    state = job_state(job.folder)
    config = read_config(job.folder) if (job.folder / CONFIG_FILE).is_file() else None
    message = state.error.message.strip() if state.error else ""
    first_line = message.splitlines()[0] if message else ""
    return JobStatus(job, state.state, read_progress(job.folder, config), state.seconds, first_line)


def _table(folder: str | Path, statuses: Sequence[JobStatus]) -> Table:
    room = max(1, console.height - AROUND)
    shown = list(statuses)
    if len(shown) > room:
        shown = sorted(shown, key=lambda status: ORDER.index(status.state))[:room]
    left_out = len(statuses) - len(shown)
    caption = _counts(statuses) + (f"; {left_out} more jobs" if left_out else "")
    table = Table(title=str(folder), caption=caption)
    for heading in ("row", "fold", "seed", "state"):
        table.add_column(heading)
    for heading in ("epoch", "best Dice", "time"):
        table.add_column(heading, justify="right")
    table.add_column("error", overflow="ellipsis", no_wrap=True)
    for status in shown:
        job, colour = status.job, COLOURS[status.state]
        texts = (status.epochs, status.best, status.elapsed, status.error)
        state = Text(status.state, style=colour)
        table.add_row(job.row or "", str(job.fold), str(job.seed), state, *texts)
    return table


def _say_changes(statuses: Sequence[JobStatus], said: dict[Path, str]) -> None:
    """Print a line per job whose state or epoch has changed since its last line."""
    for status in statuses:
        parts = [status.state]
        parts += [f"epoch {status.epochs}"] if status.epochs else []
        if said.get(status.job.folder) == ", ".join(parts):
            continue
        said[status.job.folder] = ", ".join(parts)
        parts += [f"best Dice {status.best}"] if status.best else []
        parts += [status.elapsed] if status.elapsed else []
        parts += [status.error] if status.error else []
        line = f"{status.name}: {', '.join(parts)}"
        say(line)


def _all_ended(statuses: Sequence[JobStatus]) -> bool:
    return all(status.state in ENDED for status in statuses)


def _counts(statuses: Sequence[JobStatus]) -> str:
    """Jobs per state: "3 finished, 1 crashed"."""
    counts = Counter(status.state for status in statuses)
    return ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
