"""Tools of every benchmark: medians of warm runs, separate processes, Markdown tables.

Only the standard library is imported, so that nnU-Net's interpreter, and machines with little installed, can use it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def run_worker(
    module: str,
    arguments: Sequence[str],
    *,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run `python -m module arguments` in a fresh process and return the figures of its last line, which is JSON.

    Args:
        module: e.g. "benchmarks.network".
        arguments: Arguments of the command line.
        python: The interpreter.
        environment: Variables added to those of this process.

    Raises:
        SystemExit: If the process fails, with its stderr.
    """
    command = [python, "-m", module, *arguments]
    variables = os.environ | dict(environment or {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def median_seconds(work: Callable[[], Any], runs: int) -> float:
    """Return the median seconds of `runs` timed runs after an untimed one."""
    return statistics.median(warm_seconds(work, runs))


def warm_seconds(work: Callable[[], Any], runs: int) -> list[float]:
    """Return the seconds of each of `runs` runs after an untimed one, which fills caches and compiles code."""
    work()
    return timed_seconds(work, runs)


def timed_seconds(work: Callable[[], Any], runs: int) -> list[float]:
    """Return the seconds of each of `runs` runs."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def peak_bytes() -> int:
    """Return the peak of this program; Linux's ru_maxrss may instead be that of the process that started it."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


@dataclass
class Table:
    """A Markdown table; the first `left` columns are text, the others numbers."""

    title: str
    columns: Sequence[str]
    left: int = 1
    rows: list[Sequence[str]] = field(default_factory=list)

    def add_row(self, *cells: str) -> None:
        """Add a row of as many cells as there are columns."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{self.title}: a row of {len(cells)} cells; expected {len(self.columns)}")
        self.rows.append(cells)

    def __str__(self) -> str:
        lines = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
        rule = ["-" * (width - (number >= self.left)) for number, width in enumerate(widths)]
        rule[self.left :] = [dashes + ":" for dashes in rule[self.left :]]

        def written(cells: Sequence[str]) -> str:
            padded = [
                cell.ljust(width) if number < self.left else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return f"| {' | '.join(padded)} |"

        return "\n".join([f"\n{self.title}\n", *map(written, [lines[0], rule, *lines[1:]])])


def new_table(title: str, columns: Sequence[str], *, left: int = 1) -> Table:
    """Return an empty table; the first `left` columns are text, the others numbers."""
    return Table(title, columns, left)


def show(table: Table) -> None:
    """Print a table, and at once, since what follows may take minutes."""
    print(table, flush=True)
