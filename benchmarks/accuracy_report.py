"""The report of `benchmarks.accuracy`: a figure and tables from the points of work folders alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.accuracy_plan import DATASETS, TITLES
from benchmarks.accuracy_work import read_record
from benchmarks.measuring import new_table
from e2enet.common.errors import InputError
from e2enet.common.files import atomic_path, write_csv
from e2enet.report.pictures.style import RowStyle, house_style, legend_below, new_figure, row_styles, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERS = ("seed", "minutes", "steps", "seconds_per_step", "clock_seconds", "dice", "cases")
MACHINE = ("processor", "threads", "run_threads")
KEYS = ("dataset", "method", *NUMBERS, *MACHINE, "classes", "each", "patch_size", "batch_size")
DICE_TICKS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.83, 0.85, 0.87, 0.88, 0.89, 0.9, 0.92, 0.94, 0.95, 0.97, 0.98, 0.99)
TEXTS = ("versions", "settings", "timing")


@dataclass(frozen=True)
class Curve:
    """All points of a method on a dataset."""

    dataset: str
    method: str
    points: tuple[dict[str, Any], ...]

    @property
    def minutes(self) -> list[float]:
        return sorted({point["minutes"] for point in self.points})

    def dice(self, minutes: float) -> list[float]:
        """Return the mean Dice of each seed."""
        return [point["dice"] for point in self.points if point["minutes"] == minutes]

    def all_of(self, key: str) -> list[Any]:
        """Return the different values of a key, in order of appearance."""
        found: list[Any] = []
        for point in self.points:
            found += [] if point[key] in found else [point[key]]
        return found


def write_report(works: Sequence[Path], output: Path) -> list[Path]:
    """Write accuracy.png, accuracy.md and accuracy.csv to a folder and return their paths.

    Raises:
        InputError: no point is in the work folders, a file is not one, or a point comes twice.
    """
    curves = read_curves(works)
    picture, text, table = (output / f"accuracy.{ending}" for ending in ("png", "md", "csv"))
    save_figure(draw_curves(curves), picture)
    with atomic_path(text) as temporary:
        temporary.write_text(write_text(curves) + "\n", encoding="utf-8")
    columns = ("dataset", "method", *NUMBERS)
    write_csv(table, [{key: point[key] for key in columns} for curve in curves for point in curve.points], columns)
    return [picture, text, table]


def read_curves(works: Sequence[Path]) -> list[Curve]:
    """Return the curves of work folders: datasets and methods in the order of their tables."""
    points = []
    seen: dict[Any, Path] = {}
    for path in [path for work in works for path in sorted(work.glob("*/jobs/*/points/*.json"))]:
        point = read_record(path, [*KEYS, *TEXTS])
        wrong = [key for key in NUMBERS if isinstance(point[key], bool) or not isinstance(point[key], int | float)]
        if wrong or point["method"] not in TITLES or point["dataset"] not in DATASETS:
            what = f"{wrong[0]} is {point[wrong[0]]!r}" if wrong else f"{point['method']} on {point['dataset']}"
            raise InputError(f"{path}: {what}; a point of benchmarks.accuracy expected")
        place = tuple(point[key] for key in ("dataset", "method", "seed", "minutes"))
        if place in seen:
            raise InputError(
                f"{path}: the same dataset, method, seed and minutes as {seen[place]}; one of them expected"
            )
        seen[place] = path
        points.append(point)
    if not points:
        places = ", ".join(map(str, works))
        raise InputError(
            f"{places}: no scored point (DATASET/jobs/JOB/points/MINUTES.json); a work folder of `run` expected"
        )
    curves = []
    for dataset in DATASETS:
        for method in TITLES:
            own = [point for point in points if (point["dataset"], point["method"]) == (dataset, method)]
            own.sort(key=lambda point: (point["minutes"], point["seed"]))
            curves += [Curve(dataset, method, tuple(own))] if own else []
    return curves


def write_text(curves: Sequence[Curve]) -> str:
    """Return the tables as Markdown: a section per dataset."""
    sections = []
    for dataset in DATASETS:
        own = [curve for curve in curves if curve.dataset == dataset]
        sections += [_section(dataset, own)] if own else []
    return "\n\n".join(sections)


def _section(dataset: str, curves: Sequence[Curve]) -> str:
    minutes = sorted({minute for curve in curves for minute in curve.minutes})
    seeds = max(len(curve.dice(minute)) for curve in curves for minute in minutes)
    cases = " or ".join(map(str, sorted({case for curve in curves for case in curve.all_of("cases")})))
    each = " or ".join("a training each" if one else "one training" for one in sorted(_all(curves, "each")))
    spread = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    title = f"Mean Dice of {cases} whole validation cases after so many minutes of training ({each}): {spread}"
    columns = ("method", "patch, batch", "s per step", "steps", *(f"{minute:g} min" for minute in minutes))
    table = new_table(title, columns)
    for curve in curves:
        cells = [_dice_cell(curve.dice(minute), seeds) for minute in minutes]
        patches = {f"{' x '.join(map(str, point['patch_size']))}, {point['batch_size']}" for point in curve.points}
        seconds = _span([point["seconds_per_step"] for point in curve.points], ".2f")
        last = [point["steps"] for point in curve.points if point["minutes"] == curve.minutes[-1]]
        table.add_row(TITLES[curve.method], "; ".join(sorted(patches)), seconds, _span(last, "d"), *cells)
    return "\n".join([f"## {DATASETS[dataset].title}", str(table), "", *_notes(curves)])


def _dice_cell(values: Sequence[float], seeds: int) -> str:
    """Return mean ± standard deviation; the number of seeds too, if it is not that of the table."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}" + f" (n = {len(values)})" * (len(values) < seeds)


def _notes(curves: Sequence[Curve]) -> list[str]:
    """Return what is to know about the minutes, and what every method was run with, as a Markdown list."""
    machines = {_machine(point) for curve in curves for point in curve.points}
    lines = [
        f"- Trained on: {'; '.join(sorted(machines))}.",
        "- Minutes are steps times the seconds per step that were measured before. On the clock the steps took, in "
        "these units: " + ", ".join(f"{TITLES[curve.method]} {_clock(curve)}" for curve in curves) + ".",
    ]
    for curve in curves:
        settings = [line for lines_of_point in curve.all_of("settings") for line in lines_of_point]
        lines.append(f"- {TITLES[curve.method]} ({'; '.join(curve.all_of('versions'))}):")
        lines.append(f"    - seconds per step: {'; '.join(curve.all_of('timing'))}")
        lines += [f"    - {line}" for line in dict.fromkeys(settings)]
    return lines


def _machine(point: dict[str, Any]) -> str:
    fewer = "" if point["run_threads"] == point["threads"] else f", run on {point['run_threads']}"
    return f"{point['processor']}, {point['threads']} threads{fewer}"


def _clock(curve: Curve) -> str:
    return _span(
        [point["clock_seconds"] / (point["steps"] * point["seconds_per_step"]) for point in curve.points], ".2f"
    )


def _span(values: Sequence[float], form: str) -> str:
    """Return the smallest and largest value, or the value if they look alike."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _all(curves: Sequence[Curve], key: str) -> set[Any]:
    return {value for curve in curves for value in curve.all_of(key)}


def draw_curves(curves: Sequence[Curve]) -> Figure:
    """Draw Dice over minutes, a panel per dataset: the mean of the seeds, and a band from the worst to the best."""
    from matplotlib.lines import Line2D

    datasets = [dataset for dataset in DATASETS if any(curve.dataset == dataset for curve in curves)]
    methods = [method for method in TITLES if any(curve.method == method for curve in curves)]
    styles = dict(zip(TITLES, row_styles(len(TITLES), 0), strict=True))  # nnU-Net, the reference, is black
    with house_style():
        figure = new_figure(4.0, width=9.6 if len(datasets) > 1 else 6.4)
        panels = figure.subplots(1, len(datasets), squeeze=False)[0]
        for axes, dataset in zip(panels, datasets, strict=True):
            own = [curve for curve in curves if curve.dataset == dataset]
            for curve in own:
                _draw_curve(axes, curve, styles[curve.method])
            ticks = sorted({minute for curve in own for minute in curve.minutes})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{minute:g}" for minute in ticks])
            axes.set_xticks([], minor=True)
            axes.set_xlabel("minutes of training")
            axes.set_title(f"{DATASETS[dataset].title}: validation Dice")
            _scale_by_error(axes)
        handles = [Line2D([], [], label=TITLES[method], **_look(styles[method])) for method in methods]
        legend_below(figure, handles)
        figure.draw_without_rendering()  # the layout must be computed while the style's settings apply
    return figure


def _scale_by_error(axes: Axes) -> None:
    """Scale Dice by the logarithm of what it lacks to 1: from 0.80 to 0.90 is as far as from 0.90 to 0.95."""
    low, high = axes.get_ylim()
    axes.set_yscale("function", functions=(lambda dice: -np.log(np.maximum(1 - dice, 1e-4)), lambda y: 1 - np.exp(-y)))
    ticks = [tick for tick in DICE_TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:.2f}" for tick in ticks])
    axes.set_yticks([], minor=True)


def _draw_curve(axes: Axes, curve: Curve, style: RowStyle) -> None:
    values = [curve.dice(minute) for minute in curve.minutes]
    if max(map(len, values)) > 1:
        low, high = [min(found) for found in values], [max(found) for found in values]
        axes.fill_between(curve.minutes, low, high, color=style.colour, alpha=0.15, lw=0, zorder=1)
    axes.plot(curve.minutes, [statistics.mean(found) for found in values], **_look(style))


def _look(style: RowStyle) -> dict[str, Any]:
    return {"color": style.colour, "ls": style.dashes, "marker": style.marker, "markersize": 5}
