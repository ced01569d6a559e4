"""Rows that were scored on other cases, as in a sweep under way: their means do not compete."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2enet.report.pictures import tradeoff
from e2enet.report.pictures.cases import best_other
from e2enet.report.pictures.rows import Row, picture_rows
from e2enet.report.results.options import Options
from e2enet.report.results.runs import load_runs
from e2enet.report.tables.sections import Section, build_report
from tests.report.conftest import ABLATION, FakeJob, write_sweep

# Fold 1 is easy: there all rows are better than any on fold 0.
JOBS = (
    *(FakeJob("s80", fold=fold, dice=dice) for fold, dice in ((0, 0.70), (1, 0.90))),
    *(FakeJob("s70", fold=fold, dice=dice, density=0.3) for fold, dice in ((0, 0.72), (1, 0.92))),
    FakeJob("s90", fold=1, dice=0.85, density=0.1),
)


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> tuple[Section, list[Row]]:
    folder = write_sweep(tmp_path_factory.mktemp("unequal") / "sweep", JOBS, {"sparsity": ABLATION})
    for job in JOBS:
        path = folder / job.folder / "scores.csv"
        path.write_text(path.read_text().replace("hippocampus_", f"fold{job.fold}_"))
    runs = load_runs(folder)
    options = Options(resamples=50, trade_off=True)
    (found,) = build_report(runs, options, count=lambda overrides, setting: {}).sections
    return found, picture_rows(runs, "sparsity", found.lines)


def test_the_best_is_among_rows_of_the_same_cases(section: tuple[Section, list[Row]]) -> None:
    table = section[0].accuracy
    lines = {line["row"]: line for line in table.lines}
    assert lines["s90"]["dice"] > lines["s70"]["dice"] > lines["s80"]["dice"]
    dice = [column.group == "obtained" and column.heading == "Dice (%)" for column in table.shown()].index(True)
    bold = {line["row"]: marks[dice] for line, marks in zip(table.lines, table.emphasised(), strict=True)}
    assert [row for row, best in bold.items() if best] == ["s70"]
    assert any("scored on other cases" in note for note in table.notes)
    # The cases that both scored are tested all the same.
    assert lines["s90"]["pairs"] == 8 and lines["s90"]["rank_biserial"] == -1


def test_the_trade_off_is_among_rows_of_the_same_cases(section: tuple[Section, list[Row]]) -> None:
    lines = {line["row"]: line for line in section[0].lines}
    assert lines["s70"]["pt"] > 0 and lines["s80"]["pt"] > 0
    assert lines["s90"]["pt"] != lines["s90"]["pt"]  # alone on its cases: NaN


def test_other_cases_have_axes_and_a_front_of_their_own(section: tuple[Section, list[Row]]) -> None:
    groups: dict[str, list[str]] = {}
    for point in tradeoff.obtained_points(section[1]):
        groups.setdefault(point.title, []).append(point.label)
    hippocampus = "obtained on Task04_Hippocampus"
    assert groups == {f"{hippocampus}, 8 cases": ["S = 0.9"], f"{hippocampus}, 16 cases": ["S = 0.8", "S = 0.7"]}


def test_the_best_other_row_was_scored_on_the_reference_s_cases(section: tuple[Section, list[Row]]) -> None:
    found = best_other(section[1])
    assert found is not None and found.label == "S = 0.7"


def test_rows_of_the_same_cases_have_no_such_note(tmp_path: Path) -> None:
    jobs = tuple(FakeJob(row, density=density) for row, density in (("s80", 0.2), ("s70", 0.3)))
    runs = load_runs(write_sweep(tmp_path / "sweep", jobs, {"sparsity": ABLATION}))
    (found,) = build_report(runs, Options(resamples=50), count=lambda overrides, setting: {}).sections
    notes = " ".join(found.accuracy.notes)
    assert "scored on other cases" not in notes
    assert "Bootstrap intervals over fewer than 10 cases are too narrow." in notes  # it has 8
