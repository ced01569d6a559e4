"""A summary of scores as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def scores_table(summary: Mapping[str, Any], *, title: str = "Scores") -> Table:
    """Rich table of a summary (the content of summary.json): a row per class, then their mean."""
    classes = list(summary["classes"].values())
    table = Table(title=f"{title} ({summary['n_cases']} cases)")
    table.add_column("class")
    for column in ("Dice", "NSD", "HD95 (mm)", "cases", "missed", "invented"):
        table.add_column(column, justify="right")
    for label, entry in summary["classes"].items():
        counts = (str(entry.get(key, "-")) for key in ("n", "missed", "invented"))
        table.add_row(f"{label} {entry['name']}", *_scores(entry), *counts)
    table.add_section()
    missed, invented = (str(sum(entry.get(key, 0) for entry in classes)) for key in ("missed", "invented"))
    table.add_row("mean of classes", *_scores(summary["mean"]), "", missed, invented, style="bold")
    return table


def _scores(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    return _number(entry["dice"], 4), _number(entry["nsd"], 4), _number(entry["hd95"], 2)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
