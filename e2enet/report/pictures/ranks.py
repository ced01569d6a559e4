"""Draw critical-distance diagrams: rows on an axis of mean ranks, bars join those that are not told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from e2enet.report.pictures.rows import Row
from e2enet.report.pictures.style import GREY, INK, WIDTH, RowStyle, house_style, new_figure, wrapped
from e2enet.report.results.ranks import RankTest
from e2enet.report.tables.columns import p_text
from e2enet.report.tables.ranks import Ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches: the axis of ranks stands between two columns of names.
AXIS, BAR, LINE = 3.8, 0.13, 0.15
TOP = 0.85  # above the axis of ranks: title, critical distance, numbers
LETTERS = 30  # of a name, per line
UNKNOWN = RowStyle(INK, "o", "-")


def draw_ranks(rankings: Sequence[Ranking], rows: Sequence[Row]) -> Figure | None:
    """Draw one diagram per dataset whose rows could be ranked; None if there is none.

    The best rank is on the left. The upper bar is the critical distance. It is left out where Friedman's test finds no
    difference, as no pair is compared then and one bar joins all rows.
    """
    drawn = [(ranking.data, ranking.test) for ranking in rankings if ranking.test]
    if not drawn:
        return None
    styles = {str(row.line.get("label", row.label)): row.style for row in rows}
    with house_style():
        heights = [_height(test) for _, test in drawn]
        figure = new_figure(sum(heights))
        grid = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (data, test), height in zip(grid, drawn, heights, strict=True):
            _draw_diagram(axes, test, styles, height)
            axes.set_title(f"{data}: {_title(test)}" if len(drawn) > 1 else _title(test), y=1.0, pad=-12)
        figure.draw_without_rendering()
    return figure


def shown_names(test: RankTest) -> list[str]:
    """Return the rows' names, best first, wrapped to three lines at most."""
    return [wrapped(str(name), LETTERS) for name in test.mean_ranks.index]


def bars(test: RankTest) -> list[tuple[float, float]]:
    """Return the first and last rank that each bar joins; a row in no group with another has no bar."""
    joined = [test.mean_ranks[group] for group in test.groups() if len(group) > 1]
    return [(float(ranks.iloc[0]), float(ranks.iloc[-1])) for ranks in joined]


def _title(test: RankTest) -> str:
    p = p_text(test.p)
    found = "the rows differ" if test.is_significant else "no difference found"
    return f"Mean rank over {test.cases} cases, 1 is best. Friedman: {found}, p {p if p.startswith('<') else f'= {p}'}"


def _line_height(test: RankTest) -> float:
    return 0.1 + LINE * max(name.count("\n") + 1 for name in shown_names(test))


def _height(test: RankTest) -> float:
    names = -(-len(test.mean_ranks) // 2)
    return TOP + BAR * (len(bars(test)) + 1) + _line_height(test) * (names + 0.3)


def _draw_diagram(axes: Axes, test: RankTest, styles: dict[str, RowStyle], height: float) -> None:
    """Draw into axes whose y is in inches below the axis of ranks."""
    count = len(test.mean_ranks)
    unit = AXIS / (count - 1)  # inches per rank
    side = (WIDTH - AXIS) / 2 / unit
    axes.set_axis_off()
    axes.set_xlim(1 - side, count + side)
    axes.set_ylim(height - TOP, -TOP)
    axes.plot([1, count], [0, 0], color=GREY, lw=1.2, zorder=1)
    for rank in range(1, count + 1):
        axes.plot([rank, rank], [0, -0.06], color=GREY, lw=1.2, zorder=1)
        axes.text(rank, -0.09, str(rank), ha="center", va="bottom", color=INK, fontsize=9.5)
    if test.is_significant:
        _draw_distance(axes, test.critical_distance, unit)
    spans = bars(test)
    for place, (first, last) in enumerate(spans, start=1):
        ends = [first - 0.05 / unit, last + 0.05 / unit]
        axes.plot(ends, [BAR * place] * 2, color=INK, lw=3.4, solid_capstyle="butt", zorder=3, gid="bar")
    _draw_names(axes, test, styles, BAR * (len(spans) + 1), unit)


def _draw_distance(axes: Axes, distance: float, unit: float) -> None:
    height = -0.42
    axes.plot([1, 1 + distance], [height] * 2, color=INK, lw=1.4, marker="|", markersize=7, gid="critical distance")
    axes.text(
        1 + distance + 0.08 / unit, height, f"critical distance {distance:.2f}", ha="left", va="center", fontsize=9.5
    )


def _draw_names(axes: Axes, test: RankTest, styles: dict[str, RowStyle], start: float, unit: float) -> None:
    """Draw marker, leader and name of each row: the better half on the left, the outermost on top."""
    count = len(test.mean_ranks)
    left = (count + 1) // 2
    line = _line_height(test)
    for place, (name, (label, rank)) in enumerate(zip(shown_names(test), test.mean_ranks.items(), strict=True)):
        style = styles.get(str(label), UNKNOWN)
        is_left = place < left
        y = start + line * ((place if is_left else count - 1 - place) + 0.5)
        edge = 1 - 0.15 / unit if is_left else count + 0.15 / unit
        axes.plot([rank, rank, edge], [0, y, y], color=style.colour, lw=1.1, zorder=2, solid_joinstyle="miter")
        axes.plot(rank, 0, ls="", marker=style.marker, color=style.colour, markersize=7, mec="white", mew=0.6, zorder=4)
        away, side = (-1 / unit, "right") if is_left else (1 / unit, "left")
        for distance, text in ((0.08, f"{rank:.2f}"), (0.5, name)):
            # Names of several lines stand around the leader; a single line stands on one height with the number.
            align = "center" if "\n" in text else "center_baseline"
            axes.text(edge + distance * away, y, text, ha=side, va=align, fontsize=9.5, color=INK)
