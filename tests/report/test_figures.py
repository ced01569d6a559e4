"""Curves are read as they were written, and drawn only if there is data."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2enet.common.errors import InputError
from e2enet.report import figures
from e2enet.report.figures import draw_figures, metric_curves
from e2enet.report.results.run_files import read_metrics

METRICS = """epoch,step,train/loss,val/dice,val/dice_liver,dsff/density
0,9,1.5,,,
0,9,,0.25,0.5,
1,19,0.5,nan,,
"""


def test_curves_skip_empty_cells_and_nan(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    curves = metric_curves(read_metrics(tmp_path / "metrics.csv"))
    assert {name: curve.to_dict() for name, curve in curves.items()} == {
        "train/loss": {1: 1.5, 2: 0.5},
        "val/dice": {1: 0.25},
        "val/dice_liver": {1: 0.5},
    }


def test_figures_are_drawn_where_there_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    assert draw_figures(tmp_path) == [tmp_path / "figures" / "learning_curves.png"]
    assert (tmp_path / "figures" / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "metrics.csv").write_text(METRICS.replace("1,19,0.5,nan,,", "1,19,0.5,nan,,0.2"))
    assert [path.name for path in draw_figures(tmp_path)] == ["learning_curves.png", "dsff.png"]


def test_class_names_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure) or path)
    names = ["_left", "[/b]", r"$\frac$"]
    header = ",".join(["epoch,step", *(f"val/dice_{name}" for name in names)])
    (tmp_path / "metrics.csv").write_text(f"{header}\n0,9,0.1,0.2,0.3\n")
    draw_figures(tmp_path)
    texts = drawn[0].axes[0].get_legend().get_texts()
    assert sorted(text.get_text() for text in texts) == sorted(names)
    assert not any(text.get_parse_math() for text in texts)


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics\.csv"):
        draw_figures(tmp_path)
