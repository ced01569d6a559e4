"""Plots show the numbers of the tables: means, ranges, intervals, shares; without data there is no plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from e2enet.common.errors import InputError
from e2enet.report.pictures import classes, connections, curves, tradeoff
from e2enet.report.pictures.gallery import draw_pictures
from e2enet.report.pictures.rows import Row, picture_rows
from e2enet.report.pictures.style import COLOURS, INK, house_style, new_figure, row_styles, save_figure, wrapped
from e2enet.report.pictures.tradeoff import Point, pareto_front
from e2enet.report.results.options import Options
from e2enet.report.results.runs import Runs, load_runs
from e2enet.report.tables.sections import build_report
from tests.report.conftest import ABLATION, CASES, JOBS, FakeJob, write_job, write_sweep


def rows_of(folder: Path, experiment: str | None = "sparsity") -> tuple[Runs, list[Row]]:
    report = build_report(load_runs(folder), Options(resamples=100), count=lambda overrides, setting: {})
    section = next(section for section in report.sections if section.experiment == experiment)
    return report.runs, picture_rows(report.runs, experiment, section.lines)


def row_with(**line: Any) -> Row:
    known = {f"published_{name}": None for name in ("params", "gflops", "dice", "nsd")}
    known |= {"dice": np.nan, "data": "", "published_on": None}
    return Row("row", pd.DataFrame(), row_styles(1, None)[0], line=known | line)


def test_rows_stand_in_the_papers_order_with_their_jobs(sweep_folder: Path) -> None:
    _, rows = rows_of(sweep_folder)
    assert [row.label for row in rows] == ["S = 0.9", "S = 0.8", "S = 0.7", "S = 0", "S = 0.5"]
    assert [row.is_reference for row in rows] == [False, True, False, False, False]
    assert [len(row.jobs) for row in rows] == [2, 2, 2, 2, 0]
    assert [len(row.finished) for row in rows] == [2, 2, 1, 0, 0]
    # S = 0 has no finished run, so its unfinished ones are shown.
    assert len(rows[3].with_curves) == 2 and len(rows[2].with_curves) == 1


def test_an_experiment_without_rows_is_one_row_over_its_folds(tmp_path: Path) -> None:
    jobs = tuple(FakeJob(None, 0, fold=fold, experiment="folds") for fold in (0, 1))
    write_sweep(tmp_path / "sweep", jobs, {"folds": {"title": "Folds", "rows": None}})
    _, rows = rows_of(tmp_path / "sweep", "folds")
    assert [(row.label, len(row.jobs)) for row in rows] == [("mean of all runs", 2)]


def test_no_two_rows_look_the_same_and_the_reference_is_black() -> None:
    styles = row_styles(24, reference=3)
    assert len({(style.colour, style.marker, str(style.dashes)) for style in styles}) == 24
    assert [index for index, style in enumerate(styles) if style.colour == INK] == [3]
    assert [style.colour for style in row_styles(2, None)] == list(COLOURS[:2])


def test_long_labels_are_wrapped_and_cut() -> None:
    assert wrapped("a b", 8) == "a b"
    assert wrapped("aaaa bbbb cccc dddd", 9, lines=1) == "aaaa .."
    assert wrapped("aaaa bbbb cccc dddd", 9, lines=2) == "aaaa bbbb\ncccc dddd"


def test_the_same_figure_gives_the_same_bytes_and_settings_stay(tmp_path: Path) -> None:
    import matplotlib

    before = matplotlib.rcParams["font.size"], matplotlib.rcParams["axes.grid"]
    contents = []
    for name in ("a.svg", "b.svg"):
        with house_style():
            figure = new_figure(2)
            figure.subplots().plot([0, 1], [0, 1])
            contents.append(save_figure(figure, tmp_path / name).read_bytes())
    assert contents[0] == contents[1] and b"<dc:date>" not in contents[0]
    assert (matplotlib.rcParams["font.size"], matplotlib.rcParams["axes.grid"]) == before


def test_curves_are_mean_and_range_over_runs_by_epoch(sweep_folder: Path) -> None:
    runs, rows = rows_of(sweep_folder)
    table = curves.epoch_curves(runs, rows, curves.LEARNING)["S = 0.9", "val/dice"]
    assert table.index.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(table.mean(axis=1), [80.5 * share for share in (0.25, 0.5, 0.75, 1)])
    figure = curves.draw_learning_curves(runs, rows)
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == list(curves.LEARNING.values())
    drawn = figure.axes[1].lines[0]
    np.testing.assert_allclose(np.asarray(drawn.get_ydata(), float), table.mean(axis=1))
    band = figure.axes[1].collections[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(81) and band[:, 1].min() == pytest.approx(80 * 0.25)
    loss = curves.epoch_curves(runs, rows, curves.LEARNING)["S = 0.9", "train/loss"]
    np.testing.assert_allclose(loss.mean(axis=1), [2 - share for share in (0.25, 0.5, 0.75, 1)])  # not in percent
    # S = 0.5 was not run: the legend names the four other rows.
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        *("S = 0.9", "S = 0.8", "S = 0.7", "S = 0 (unfinished)")
    ]


def test_a_mean_ends_with_the_first_of_its_runs(tmp_path: Path) -> None:
    # Both runs were stopped. After the second epoch the mean would be that of a single run.
    jobs = tuple(FakeJob("s80", seed, state="interrupted", epochs_done=done) for seed, done in ((0, 2), (1, 3)))
    runs, rows = rows_of(write_sweep(tmp_path / "sweep", jobs, {"sparsity": ABLATION}))
    table = curves.epoch_curves(runs, rows, curves.LEARNING)["S = 0.8", "train/loss"]
    assert table.index.tolist() == [1, 2] and table.shape == (2, 2) and table.notna().all(axis=None)
    figure = curves.draw_learning_curves(runs, rows)
    assert figure is not None and figure.axes[0].get_title(loc="left") == "training loss, unfinished"


def test_curves_that_nobody_wrote_are_no_picture(sweep_folder: Path) -> None:
    runs, rows = rows_of(sweep_folder)
    assert curves.draw_panels(curves.epoch_curves(runs, rows, {"dsff/none": ""}), rows, {"dsff/none": ""}) is None
    assert curves.draw_topology(runs, rows[4:]) is None


def test_the_front_holds_what_no_other_point_beats() -> None:
    style = row_styles(1, None)[0]
    points = [
        Point(name, style, {"params": cost}, dice, (dice, dice))
        for name, cost, dice in (("a", 3, 90), ("b", 1, 80), ("c", 2, 79), ("d", 2, 85), ("e", 4, 90))
    ]
    assert [point.label for point in pareto_front(points, "params")] == ["b", "d", "a"]


def test_points_are_the_tables_numbers(sweep_folder: Path) -> None:
    _, rows = rows_of(sweep_folder)
    obtained = tradeoff.obtained_points(rows)
    assert [point.label for point in obtained] == ["S = 0.9", "S = 0.8", "S = 0.7"]
    summaries = [json.loads((sweep_folder / job.folder / "summary.json").read_text()) for job in JOBS[:2]]
    assert obtained[0].dice == pytest.approx(50 * sum(summary["mean"]["dice"] for summary in summaries))
    assert obtained[0].costs == pytest.approx({"params": 1.1, "gflops": 4.4})
    low, high = obtained[0].interval
    assert low < obtained[0].dice < high
    published = {point.label: point for point in tradeoff.published_points(rows)}
    assert set(published) == {"S = 0.9", "S = 0.8", "S = 0.7"}  # the Dice of S = 0 is unknown
    assert published["S = 0.7"].interval == (90.1, 90.2) and published["S = 0.7"].dice == pytest.approx(90.15)
    assert all(point.hollow for point in published.values())
    figure = tradeoff.draw_tradeoff(rows)
    assert figure is not None and len(figure.axes) == 4
    assert figure.axes[0].get_title(loc="left") == "obtained on Task04_Hippocampus"
    assert figure.axes[2].get_title(loc="left") == "published, on AMOS-CT"


def test_datasets_share_neither_axes_nor_front() -> None:
    lines = [
        {"data": "AMOS-CT", "competes_on": "AMOS-CT", "dice": 90.0, "params": 1.0, "published_on": "AMOS-CT"},
        {"data": "BTCV", "competes_on": "BTCV", "dice": 80.0, "params": 2.0, "published_on": "BTCV"},
        {"data": "BTCV", "competes_on": "BTCV", "dice": 85.0, "params": 3.0, "published_on": "AMOS-CT"},
    ]
    others = {"gflops_paper": 1.0, "dice_low": np.nan, "dice_high": np.nan}
    rows = [row_with(**others, **line, published_dice=70.0, published_params=1.0) for line in lines]
    figure = tradeoff.draw_tradeoff(rows)
    assert figure is not None
    left = figure.axes[::2]
    assert [axes.get_title(loc="left") for axes in left] == [
        *("obtained on AMOS-CT", "obtained on BTCV", "published, on AMOS-CT", "published, on BTCV")
    ]
    drawn = [[float(line.get_ydata()[0]) for line in axes.lines if line.get_marker() != "None"] for axes in left]
    assert drawn == [[90], [80, 85], [70, 70], [70]]
    fronts = [[list(line.get_ydata()) for line in axes.lines if line.get_marker() == "None"] for axes in left]
    assert fronts == [[], [[80, 85]], [], []]


def test_runs_of_fold_all_are_in_no_picture_of_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = (FakeJob("s80", 1), FakeJob("s80", 1, "all", dice=0.99))
    folder = write_sweep(tmp_path / "sweep", jobs, {"sparsity": ABLATION})
    _, rows = rows_of(folder)
    assert [(row.label, len(row.jobs)) for row in rows if len(row.jobs)] == [
        ("S = 0.8", 1),
        ("S = 0.8, fold all, scored on training cases", 1),
    ]
    seen: dict[str, list[str]] = {}
    for name in ("draw_tradeoff", "draw_class_dice", "draw_learning_curves"):
        # `draw_learning_curves` takes runs before rows, the others take rows first.
        place = 1 if name == "draw_learning_curves" else 0
        monkeypatch.setattr(
            f"e2enet.report.pictures.gallery.{name}",
            lambda *given, name=name, place=place: seen.update({name: [row.label for row in given[place]]}),
        )
    report = build_report(load_runs(folder), Options(resamples=100), count=lambda overrides, setting: {})
    titles = [picture.title for picture in draw_pictures(report, tmp_path / "figures")["sparsity"]]
    assert not [title for title in titles if "training cases" in title]
    others = [row.label for row in rows if row.label != rows[2].label]
    assert seen["draw_tradeoff"] == seen["draw_class_dice"] == others
    assert seen["draw_learning_curves"] == [row.label for row in rows]


def test_without_points_there_is_no_tradeoff() -> None:
    assert tradeoff.draw_tradeoff([]) is None
    known = row_with(published_dice=90.0)  # without a cost there is no point
    assert tradeoff.published_points([known]) == []


def test_class_dice_counts_each_case_once_and_missed_ones_as_zero(sweep_folder: Path) -> None:
    runs, rows = rows_of(sweep_folder)
    figure = classes.draw_class_dice(rows, runs.cases)
    assert figure is not None
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["anterior", "posterior"]
    own = runs.cases[runs.cases["key"].isin([job.key for job in JOBS[2:4]]) & (runs.cases["name"] == "posterior")]
    expected = 100 * own.groupby("case")["dice"].mean().dropna()
    assert len(expected) == len(CASES) - 1  # absent in the last case
    # The reference's marker: black, at the mean of the cases.
    means = [line for line in axes.lines if line.get_color() == INK and len(line.get_xdata()) == 1]
    assert float(means[1].get_xdata()[0]) == pytest.approx(expected.mean())
    assert classes.draw_class_dice(rows[4:], runs.cases) is None


def test_a_class_missed_everywhere_stands_at_its_true_mean() -> None:
    # 1 of 100 cases has the spleen, and one of the two rows misses it: that row's mean is 0, from a single case.
    lines = [(key, f"c{n}", "liver", 0.95) for key in "ab" for n in range(100)]
    lines += [("a", "c0", "spleen", 0.9), ("b", "c0", "spleen", 0.0)]
    cases = pd.DataFrame(lines, columns=["key", "case", "name", "dice"]).assign(region=False)
    rows = [
        Row(key, pd.DataFrame([{"key": key, "state": "finished"}]), style)
        for key, style in zip("ab", row_styles(2, None), strict=True)
    ]
    figure = classes.draw_class_dice(rows, cases)
    assert figure is not None
    axes = figure.axes[0]
    means = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == rows[1].style.marker]
    assert means == pytest.approx([95.0, 0.0]) and axes.get_xlim()[0] <= 0 and not axes.texts


def test_cases_left_of_the_axis_are_counted() -> None:
    assert classes.axis_start(pd.Series([88.0] * 100), 88) == 80
    assert classes.axis_start(pd.Series([88.0] * 100), 74) == 70
    assert classes.axis_start(pd.Series([10.0] * 50 + [90.0] * 50), 50) == 0
    assert classes.axis_start(pd.Series([100.0] * 100), 100) == 90
    dice = [0.0, *np.linspace(0.9, 0.98, 99)]
    cases = pd.DataFrame({"key": "a", "case": [f"c{n}" for n in range(100)], "name": "liver", "dice": dice})
    jobs = pd.DataFrame([{"key": "a", "state": "finished"}])
    row = Row("row", jobs, row_styles(1, None)[0])
    figure = classes.draw_class_dice([row], cases.assign(region=False))
    assert figure is not None
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["◂ 1"]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [100 * value for value in dice[1:]])


CONNECTIONS = [
    {"layer": "a", "level": 0, "column": 1, "flow": "forward", "active": 1, "kernels": 4},
    {"layer": "a", "level": 0, "column": 1, "flow": "up", "active": 3, "kernels": 4},
    {"layer": "b", "level": 1, "column": 1, "flow": "down", "active": 2, "kernels": 4},
    {"layer": "c", "level": 0, "column": 2, "flow": "forward", "active": 0, "kernels": 4},
    {"layer": "c", "level": 0, "column": 2, "flow": "transposed", "active": 4, "kernels": 4},
]


def test_connections_are_added_up_over_runs_and_stand_in_the_grids_geometry(sweep_folder: Path) -> None:
    for job, extra in zip(JOBS[:2], (0, 1), strict=True):
        changed = [CONNECTIONS[0] | {"active": 1 + extra}, *CONNECTIONS[1:]]
        (sweep_folder / job.folder / "connections.json").write_text(json.dumps(changed))
    runs, rows = rows_of(sweep_folder)
    table = connections.row_connections(runs, rows[0]).set_index(["level", "column", "flow"])["share"]
    assert table.to_dict() == {(0, 1, "forward"): 3 / 8, (0, 1, "up"): 0.75, (0, 2, "forward"): 0, (1, 1, "down"): 0.5}
    figure = connections.draw_connections(runs, rows)
    assert figure is not None
    forward, _, down = (axes.images[0].get_array().filled(np.nan) for axes in figure.axes[:3])
    own = (3 + 6 + 0 + 4) / 32  # active share of all kernels in both runs
    np.testing.assert_allclose(forward, [[3 / 8 / own, 0], [np.nan, np.nan]])
    np.testing.assert_allclose(down, [[np.nan, np.nan], [0.5 / own, np.nan]])
    shown = {text.get_text() for text in figure.axes[0].texts}
    assert shown == {"0.92", "0.00", "-"}
    assert "40.6% active" in figure.axes[0].get_ylabel()


def test_connections_of_all_rows_have_one_scale(sweep_folder: Path) -> None:
    # S = 0.8 has twice the kernels of S = 0.9 in the same places, so the maps are equal.
    sparse = [entry | {"kernels": 8} for entry in CONNECTIONS]
    for job, entries in zip(JOBS[:4], (sparse, sparse, CONNECTIONS, CONNECTIONS), strict=True):
        (sweep_folder / job.folder / "connections.json").write_text(json.dumps(entries))
    figure = connections.draw_connections(*rows_of(sweep_folder))
    assert figure is not None
    maps = [axes.images[0] for axes in figure.axes[:6]]
    for first, second in zip(maps[:3], maps[3:], strict=True):
        np.testing.assert_allclose(first.get_array().filled(-1), second.get_array().filled(-1))
    # The scale is 0 to 2: the smallest ratio is 0, the largest 0.75 over 6 / 16.
    assert {(image.norm.vmin, image.norm.vcenter, image.norm.vmax) for image in maps} == {(0.0, 1, 2.0)}
    assert [axes.get_ylabel().split("\n")[1] for axes in (figure.axes[0], figure.axes[3])] == [
        *("18.8% active", "37.5% active")
    ]


def test_dense_networks_have_no_map_and_broken_files_are_named(tmp_path: Path) -> None:
    dense = [entry | {"active": entry["kernels"]} for entry in CONNECTIONS]
    write_job(tmp_path / "run", FakeJob(None, experiment=None))
    path = tmp_path / "run" / "connections.json"
    path.write_text(json.dumps(dense))
    assert connections.draw_connections(*rows_of(tmp_path, None)) is None
    path.write_text(json.dumps([{"level": 0}]))
    with pytest.raises(InputError, match=r"connections\.json: entries lack column, flow, active, kernels"):
        connections.read_connections(path)
    path.write_text("{}")
    with pytest.raises(InputError, match="expected a list"):
        connections.read_connections(path)
