"""The critical-distance diagram shows the numbers of the test: ranks, bars of groups, the distance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from e2enet.report.pictures.ranks import bars, draw_ranks
from e2enet.report.pictures.rows import Row, picture_rows
from e2enet.report.pictures.style import row_styles
from e2enet.report.results.options import Options
from e2enet.report.results.ranks import rank_test
from e2enet.report.results.runs import load_runs
from e2enet.report.tables.ranks import Ranking
from e2enet.report.tables.sections import build_report

LONG = "S = 0.8 (dsff.growth=gradient, network.base_features=16, optimizer.weight_decay=0.0001)"


def ranking(methods: int, *, cases: int = 40, spread: float = 3.0, name: str = "row", data: str = "") -> Ranking:
    """Rank methods whose scores grow with their number."""
    values = np.random.default_rng(methods).normal(size=(cases, methods)) + np.linspace(0, spread, methods)
    labels = [f"{name} {index}" for index in range(methods)]
    return Ranking(data, tuple({"label": label} for label in labels), rank_test(pd.DataFrame(values, columns=labels)))


def rows_of(ranked: Ranking) -> list[Row]:
    styles = row_styles(len(ranked.lines), 0)
    return [
        Row(str(line["label"]), pd.DataFrame(), style, line=line)
        for line, style in zip(ranked.lines, styles, strict=True)
    ]


def drawn(*rankings: Ranking) -> Figure:
    figure = draw_ranks(rankings, rows_of(rankings[0]))
    assert figure is not None
    return figure


@pytest.mark.parametrize("methods", [3, 5, 12])
def test_rows_stand_at_their_mean_ranks_in_their_own_style(methods: int) -> None:
    shown = ranking(methods)
    assert shown.test is not None
    (axes,) = drawn(shown).axes
    styles = {row.label: row.style for row in rows_of(shown)}
    markers = [line for line in axes.lines if line.get_ls() == "None"]
    assert [float(line.get_xdata()[0]) for line in markers] == shown.test.mean_ranks.tolist()
    expected = [(styles[str(label)].colour, styles[str(label)].marker) for label in shown.test.mean_ranks.index]
    assert [(line.get_color(), line.get_marker()) for line in markers] == expected
    texts = [text.get_text() for text in axes.texts]
    assert {f"{rank:.2f}" for rank in shown.test.mean_ranks} | set(shown.test.mean_ranks.index) <= set(texts)


def test_bars_join_the_groups_and_the_distance_is_to_scale() -> None:
    shown = ranking(6)
    assert shown.test is not None and shown.test.is_significant
    (axes,) = drawn(shown).axes
    groups = [group for group in shown.test.groups() if len(group) > 1]
    assert len(groups) > 1
    ranks = [shown.test.mean_ranks[group] for group in groups]
    assert bars(shown.test) == [(part.min(), part.max()) for part in ranks]
    lines = {name: [line for line in axes.lines if line.get_gid() == name] for name in ("bar", "critical distance")}
    overhang = [np.subtract(line.get_xdata(), ends) for line, ends in zip(lines["bar"], bars(shown.test), strict=True)]
    np.testing.assert_allclose(overhang, [[-0.05 / (3.8 / 5), 0.05 / (3.8 / 5)]] * len(groups))
    heights = [float(line.get_ydata()[0]) for line in lines["bar"]]
    assert len(set(heights)) == len(heights)  # no bar lies on another
    (distance,) = lines["critical distance"]
    assert np.ptp(np.asarray(distance.get_xdata(), float)) == pytest.approx(shown.test.critical_distance)


def test_a_row_in_no_group_with_another_has_no_bar() -> None:
    shown = ranking(3, spread=12.0)
    assert shown.test is not None and shown.test.groups() == [["row 2"], ["row 1"], ["row 0"]]
    assert bars(shown.test) == []
    (axes,) = drawn(shown).axes
    assert "bar" not in [line.get_gid() for line in axes.lines]


def test_leaders_do_not_cross() -> None:
    # The outermost rank of a side has the highest name, so no leader passes below another's corner.
    shown = ranking(7)
    assert shown.test is not None
    (axes,) = drawn(shown).axes
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    down = [heights[str(name)] for name in shown.test.mean_ranks.index]  # y grows downwards
    assert down[:4] == sorted(down[:4]) and down[4:] == sorted(down[4:], reverse=True)


def test_without_a_difference_one_bar_joins_all_and_no_distance_is_drawn() -> None:
    shown = ranking(4, cases=8, spread=0)
    assert shown.test is not None and not shown.test.is_significant
    (axes,) = drawn(shown).axes
    assert [line.get_gid() for line in axes.lines if line.get_gid() in ("bar", "critical distance")] == ["bar"]
    assert bars(shown.test) == [(shown.test.mean_ranks.iloc[0], shown.test.mean_ranks.iloc[-1])]
    assert "no difference found, p = 0." in axes.get_title(loc="left")


@pytest.mark.parametrize("name", ["S = 0.8", LONG, "$a_b$ [x]"])
def test_no_text_lies_on_another_or_leaves_the_picture(name: str) -> None:
    figure = drawn(ranking(12, name=name))
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    boxes.append(figure.axes[0].title.get_window_extent())
    for index, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not [other for other in boxes[:index] if other.width and box.overlaps(other)]


def test_each_dataset_has_its_own_diagram() -> None:
    figure = drawn(ranking(5, data="AMOS-CT"), Ranking("BTCV", (), problem="too few"), ranking(4, data="BraTS"))
    assert [axes.get_title(loc="left").partition(":")[0] for axes in figure.axes] == ["AMOS-CT", "BraTS"]
    assert draw_ranks([Ranking("BTCV", (), problem="too few")], []) is None


def test_rows_of_a_sweep_keep_their_style(sweep_folder: Path) -> None:
    report = build_report(load_runs(sweep_folder), Options(resamples=100), count=lambda overrides, setting: {})
    (section,) = report.sections
    rows = picture_rows(report.runs, section.experiment, section.lines)
    figure = draw_ranks(section.rankings, rows)
    assert figure is not None
    styles = {row.label: row.style for row in rows}
    test = section.rankings[0].test
    assert test is not None and len(test.mean_ranks) == 3
    colours = [line.get_color() for line in figure.axes[0].lines if line.get_ls() == "None"]
    assert colours == [styles[str(label)].colour for label in test.mean_ranks.index]
