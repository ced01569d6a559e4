"""Progress of a prediction run: bars of cases and windows on a terminal, a line per case in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from e2enet.common.console import console, description_column, say
from e2enet.common.errors import printable

OnWindow = Callable[[int], None]


class CaseProgress:
    """Shows the current case and the number of its windows done; created by `show_progress`."""

    def __init__(self, num_cases: int, bars: Progress | None) -> None:
        self._num_cases, self._done, self._bars = num_cases, 0, bars
        if bars is not None:
            self._cases = bars.add_task("cases", total=num_cases)
            self._windows = bars.add_task("windows", total=None)

    @contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Mark one case as in progress; print its duration afterwards, unless it failed."""
        start = time.perf_counter()
        if self._bars is not None:
            self._bars.update(self._cases, description=printable(name))
            self._bars.reset(self._windows, total=None)
        self._done += 1
        try:
            yield
            seconds = time.perf_counter() - start
            self._print(f"{self._done}/{self._num_cases} {name}: {seconds:.1f} s")
        finally:
            if self._bars is not None:
                self._bars.update(self._cases, completed=self._done)

    def windows(self, total: int) -> OnWindow:
        """Return a function to call with the number of windows just done."""
        bars = self._bars
        if bars is None:
            return lambda done: None
        bars.update(self._windows, total=total, completed=0)
        return lambda done: bars.advance(self._windows, done)

    def failed(self, name: str, reason: str) -> None:
        """Report a case that could not be predicted."""
        self._print(f"{self._done}/{self._num_cases} {name}: FAILED: {reason}")

    def _print(self, message: str) -> None:
        say(message)


@contextmanager
def show_progress(num_cases: int) -> Iterator[CaseProgress]:
    """Show the progress of `num_cases` cases; with bars only on a terminal, which can redraw them."""
    if not console.is_terminal:
        yield CaseProgress(num_cases, None)
        return
    columns = (description_column(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        yield CaseProgress(num_cases, bars)
