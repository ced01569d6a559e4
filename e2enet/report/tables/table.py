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

    Only rows take part: a fold or seed is no choice, and what is scored on training cases competes with nothing.
    """

    key: str
    largest: bool
    among: str = "data"


@dataclass(frozen=True)
class Column:
    """A column as it is read: several values of a line may share it, such as a mean and its standard deviation.

    Attributes:
        heading: Its name, with the unit.
        show: The text of a line's cell, "" where the line does not know it.
        group: What it stands under, such as "published".
        optional: Left out of a table in which every cell of it is empty.
        numeric: Set to the right.
        brief: Shown where there is little room too, as on a terminal.
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
    """Lines and the columns that show them, with a title above and notes below."""

    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    def shown(self) -> tuple[Column, ...]:
        """The columns without optional ones that are empty throughout."""
        return tuple(column for column in self.columns if not column.optional or any(map(column.show, self.lines)))

    def brief(self) -> Table:
        """The same table with its brief columns alone; all of them where none is brief."""
        columns = tuple(column for column in self.columns if column.brief)
        return replace(self, columns=columns or self.columns)

    def cells(self) -> list[list[str]]:
        """Texts, a list per line, in the order of `shown`."""
        columns = self.shown()
        return [[column.show(line) for column in columns] for line in self.lines]

    def emphasised(self) -> list[list[bool]]:
        """Which of `cells` hold the best of their column; those that read the same as the best are as good."""
        columns = [_best_lines(column, self.lines) for column in self.shown()]
        return [[index in best for best in columns] for index in range(len(self.lines))]


def is_known(value: Any) -> bool:
    """Whether there is a value at all: neither None nor NaN."""
    return value is not None and not pd.isna(value)


def text(key: str) -> Callable[[Line], str]:
    """Shows a value as it is."""
    return lambda line: str(line[key]) if is_known(line.get(key)) else ""


def number(key: str, digits: int, factor: float = 1.0) -> Callable[[Line], str]:
    """Shows a number times a factor with so many decimals; a text, such as a published "90.1-90.2", as it is."""

    def show(line: Line) -> str:
        value = line.get(key)
        if isinstance(value, str):
            return value
        if value is None or pd.isna(value):
            return ""
        return f"{factor * value:.{digits}f}"

    return show


def published_range(value: Any) -> tuple[float | None, float | None]:
    """Lower and upper end of a published number or range such as "90.1-90.2"; None where there is none."""
    if not is_known(value):
        return None, None
    low, _, high = str(value).partition("-")
    return float(low), float(high or low)


def _best_lines(column: Column, lines: Sequence[Line]) -> set[int]:
    """Places of the lines with a column's best value; a value without another to compare it with is no best."""
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
