"""One console for the whole program: tables, messages and progress go through it."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console()
Item = TypeVar("Item")


def say(text: str, style: str | None = None) -> None:
    """Print a line as it stands: names and paths in it are neither markup nor coloured, nor broken where the terminal
    ends."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def flush_every_line() -> None:
    """Let a log file of this process be read while the process runs: Python keeps back kilobytes otherwise."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items with a progress bar on a terminal; in a log file, one line when it starts and one when
    done.

    `total` is the number of items, taken from `len` where the iterable has one.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if not console.is_terminal:
        # A bar redrawn into a file is noise: a cluster log gets two lines.
        count = "" if total is None else f" ({total})"
        console.print(f"{description}{count} ...", highlight=False)
        yield from iterable
        console.print(f"{description}: done", highlight=False)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield from progress.track(iterable, description=description, total=total)
