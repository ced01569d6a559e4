"""What every benchmark measures and prints by: medians of warm runs, processes of their own, tables.

Nothing but Python's own library is imported before a table is made, so that nnU-Net's interpreter can use it too.
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
    """The figures that `python -m module arguments` prints as JSON in its last line, in a fresh process.

    Args:
        module: e.g. "benchmarks.network".
        arguments: of its command line.
        python: the interpreter.
        environment: variables beside those of this process.

    Raises:
        SystemExit: where the process fails, with its stderr.
    """
    command = [python, "-m", module, *arguments]
    variables = os.environ | dict(environment or {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def median_seconds(work: Callable[[], Any], runs: int) -> float:
    """Median of `runs` timed runs after one that is not."""
    return statistics.median(warm_seconds(work, runs))


def warm_seconds(work: Callable[[], Any], runs: int) -> list[float]:
    """Seconds of each of `runs` runs after one that is not timed: caches are filled, and code is compiled."""
    work()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def peak_bytes() -> int:
    """Peak of this program: Linux's ru_maxrss would be that of the process that started it, were it larger."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def new_table(title: str, columns: Sequence[str], *, left: int = 1) -> Any:
    """A rich table; the first `left` columns are words, the others numbers."""
    from rich.table import Table

    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    return table


def show(table: Any) -> None:
    """Print a table of `new_table`, as wide as it needs."""
    from rich.console import Console

    Console(width=140).print(table)
