"""Tools of every benchmark: medians of warm runs, separate processes, tables.

Only the standard library is imported until a table is made, so that nnU-Net's interpreter can use this file too.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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


def new_table(title: str, columns: Sequence[str], *, left: int = 1) -> Any:
    """Return a rich table; the first `left` columns are text, the others numbers."""
    from rich.table import Table

    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    return table


def show(table: Any) -> None:
    """Print a table of `new_table`, as wide as it needs."""
    from rich.console import Console

    Console(width=140).print(table)
