"""One console for the whole program: tables, messages and progress go through it.

Names of classes, ids, paths and errors come from outside. Here, and only here, they are kept from being anything but
text: brackets are no markup, colons no emoji, and signs that would steer a terminal are spelled out.
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
    """A console that shows every string as it stands, those of tables and their titles too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """rich's way from any string to what is shown: signs that this terminal or file cannot take are spelled out."""
        return super().render_str(printable(text, self.encoding), **options)


console = PlainConsole()


def say(text: str, style: str | None = None) -> None:
    """Print a line as it stands: it is not broken where the terminal ends."""
    console.print(text, style=style, soft_wrap=True)


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
        say(f"{description}{'' if total is None else f' ({total})'} ...")
        yield from iterable
        say(f"{description}: done")
        return
    columns = (description_column(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield from progress.track(iterable, description=printable(description), total=total)


def description_column() -> ProgressColumn:
    """What is done or whose turn it is, beside a progress bar; rich would read markup in it."""
    return TextColumn("{task.description}", markup=False)
