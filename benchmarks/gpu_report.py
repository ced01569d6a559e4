"""What the parts of `python -m benchmarks.gpu` found: printed at once, and kept for the table of everything.

Each part runs in a process of its own and writes what it finds, line by line, into a file. What a part had found
before it failed, hung or was killed is thus told too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measuring import Table, new_table, show

HELD, MISSED, FAILED = "yes", "missed", "FAILED"


@dataclass
class Report:
    """What a part found: rows of the table of everything, failures, and figures for --json.

    With a file, everything is appended to it as soon as it is found.
    """

    file: Path | None = None
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def find(self, what: str, value: str) -> None:
        """Tell a figure."""
        self._row(what, value, "", "")

    def aim(self, what: str, value: str, goal: str, *, reached: bool) -> None:
        """Tell a figure with its goal. A goal that is missed is no failure."""
        self._row(what, value, goal, HELD if reached else MISSED)

    def require(self, what: str, value: str, expected: str, *, held: bool) -> None:
        """Tell a figure that is wrong unless `held`: the part then counts as failed, and goes on."""
        self._row(what, value, expected, HELD if held else FAILED)
        if not held:
            self.fail(f"{what}: {value}; expected {expected}")

    def fail(self, reason: str) -> None:
        """Tell that something went wrong; the part counts as failed."""
        self.failures.append(reason)
        self._keep({"failure": reason})

    def keep(self, name: str, figures: Any) -> None:
        """Keep figures for --json."""
        self.figures[name] = figures
        self._keep({"figures": [name, figures]})

    def _row(self, *row: str) -> None:
        self.rows.append(row)  # type: ignore[arg-type]
        self._keep({"row": row})

    def _keep(self, entry: dict[str, Any]) -> None:
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")


def read_report(file: Path) -> Report:
    """Return what a part wrote into its file, without a last line that it had no time to finish."""
    report = Report()
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    for line in text[: text.rfind("\n") + 1].splitlines():
        entry = json.loads(line)
        if "row" in entry:
            report.rows.append(tuple(entry["row"]))
        elif "failure" in entry:
            report.failures.append(entry["failure"])
        else:
            name, figures = entry["figures"]
            report.figures[name] = figures
    return report


def everything(parts: dict[str, Report]) -> Table:
    """Return the table of everything: a row for each figure of each part, and one for each failure."""
    table = new_table("everything", ("part", "what", "found", "expected", "held"), left=5)
    for part, report in parts.items():
        told = {f"{what}: {value}; expected {expected}" for what, value, expected, _ in report.rows}
        for row in report.rows:
            table.add_row(part, *row)
        for failure in report.failures:
            if failure not in told:
                table.add_row(part, "failure", failure, "", FAILED)
    return table


def tell(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], *, left: int = 1) -> None:
    """Print a table of a part."""
    table = new_table(title, tuple(columns), left=left)
    for row in rows:
        table.add_row(*row)
    show(table)
