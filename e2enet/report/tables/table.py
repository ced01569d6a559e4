"""A table of the report: values line by line, and columns that say how to show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

Line = Mapping[str, Any]


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
    """

    heading: str
    show: Callable[[Line], str]
    group: str = ""
    optional: bool = False
    numeric: bool = True
    brief: bool = False


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
