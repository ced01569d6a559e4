"""One console for the whole program: tables, messages and progress go through it.

Class names, ids, paths and errors come from outside. This module alone makes sure that they are printed as plain text:
brackets are not markup, colons not emoji, and control characters are escaped.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from e2enet.common.errors import printable

Item = TypeVar("Item")


class PlainConsole(Console):
    """A console that prints every string literally, also in tables and their titles."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape characters that this terminal or file cannot show; rich calls this for every string."""
        return super().render_str(printable(text, self.encoding), **options)


console = PlainConsole()


def say(text: str, style: str | None = None) -> None:
    """Print a line without wrapping it at the terminal's width."""
    console.print(text, style=style, soft_wrap=True)


def flush_every_line() -> None:
    """Flush every line, so that a log file can be followed: Python otherwise buffers kilobytes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def track(iterable: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items with a progress bar on a terminal; in a log file, print one line at the start and one at the end.

    `total` is the number of items; by default `len` of the iterable, if it has one.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if not console.is_terminal:
        # A progress bar redrawn in a log file is noise.
        say(f"{description}{'' if total is None else f' ({total})'} ...")
        yield from iterable
        say(f"{description}: done")
        return
    columns = (description_column(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield from progress.track(iterable, description=printable(description), total=total)


def description_column() -> ProgressColumn:
    """Return the description column of a progress bar, without rich's markup."""
    return TextColumn("{task.description}", markup=False)
