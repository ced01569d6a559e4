"""A table of the report: values line by line, columns that say how to show them, and the best of each column."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Best:
    """Which of a column's values is the best: the `largest` or the smallest of `key`, among lines of equal `among`.

    Only lines of role "row" take part: no single fold or seed, no mean over them, no score on training cases.
    """

    key: str
    largest: bool
    among: str = "competes_on"


@dataclass(frozen=True)
class Column:
    """A column as it is shown. It may show several values of a line, such as a mean and its standard deviation.

    Attributes:
        heading: Its name, with the unit.
        show: Returns the text of a line's cell, "" if unknown.
        group: The heading above it, such as "published".
        optional: Left out of a table if all its cells are empty.
        numeric: Aligned to the right.
        brief: Also shown where there is little room, as on a terminal.
        best: Which values are emphasised; None: none.
    """

    heading: str
    show: Callable[[Line], str]
    group: str = ""
    optional: bool = False
    numeric: bool = True
    brief: bool = False
    best: Best | None = None


@dataclass(frozen=True)
class Table:
    """Lines and the columns that show them, with a title above and notes below.

    `conclusion` says in words what the numbers allow to conclude; "" if there is nothing to say.
    """

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    conclusion: str = ""

    def shown(self) -> tuple[Column, ...]:
        """Return the columns without optional ones whose cells are all empty."""
        return tuple(column for column in self.columns if not column.optional or any(map(column.show, self.lines)))

    def brief(self) -> Table:
        """Return the same table with its brief columns only, or with all if none is brief."""
        columns = tuple(column for column in self.columns if column.brief)
        return replace(self, columns=columns or self.columns)

    def cells(self) -> list[list[str]]:
        """Return the cells' texts, a list per line, in the order of `shown`."""
        columns = self.shown()
        return [[column.show(line) for column in columns] for line in self.lines]

    def emphasised(self) -> list[list[bool]]:
        """Return which of `cells` hold the best of their column; cells with the same text as the best count too."""
        columns = [_best_lines(column, self.lines) for column in self.shown()]
        return [[index in best for best in columns] for index in range(len(self.lines))]


def is_known(value: Any) -> bool:
    """Whether there is a value at all: neither None nor NaN."""
    return value is not None and not pd.isna(value)


def text(key: str) -> Callable[[Line], str]:
    """Return a function that shows a value as it is."""
    return lambda line: str(line[key]) if is_known(line.get(key)) else ""


def number(key: str, digits: int, factor: float = 1.0) -> Callable[[Line], str]:
    """Return a function that shows a number times `factor` with `digits` decimals, and a text "90.1-90.2" as it is."""

    def show(line: Line) -> str:
        value = line.get(key)
        if isinstance(value, str):
            return value
        if value is None or pd.isna(value):
            return ""
        return f"{factor * value:.{digits}f}"

    return show


def published_range(value: Any) -> tuple[float | None, float | None]:
    """Return lower and upper end of a published number or range such as "90.1-90.2"; None and None if unknown."""
    if not is_known(value):
        return None, None
    low, _, high = str(value).partition("-")
    return float(low), float(high or low)


def _best_lines(column: Column, lines: Sequence[Line]) -> set[int]:
    """Return the indices of the lines with a column's best value; a value with no other to compare is not a best."""
    if column.best is None:
        return set()
    groups: dict[str, dict[int, float]] = {}
    for index, line in enumerate(lines):
        value = line.get(column.best.key)
        number = published_range(value)[0] if isinstance(value, str) else value
        if line.get("role") == "row" and is_known(number) and column.show(line):
            groups.setdefault(str(line.get(column.best.among)), {})[index] = float(number)  # type: ignore[arg-type]
    choose = max if column.best.largest else min
    found: set[int] = set()
    for values in groups.values():
        if len(values) > 1:
            best = column.show(lines[choose(values, key=lambda index: values[index])])
            found |= {index for index in values if column.show(lines[index]) == best}
    return found
