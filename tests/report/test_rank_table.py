"""The table of ranks: rows of one dataset over the cases that all share, letters of groups, and why there is none."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from e2enet.report.results.options import Options
from e2enet.report.results.ranks import critical_distance, rank_test
from e2enet.report.results.runs import Runs, load_runs
from e2enet.report.results.statistics import case_means
from e2enet.report.tables.sections import Section, build_report
from e2enet.report.write import write_tables
from tests.report.conftest import ABLATION, CASES, FakeJob, write_sweep

OPTIONS = Options(resamples=100)
# In all cases s50 is best and s90 is worst. The rows' own scatter is 0.01.
ORDERED = tuple(
    FakeJob(row, seed, dice=dice, density=density)
    for row, dice, density in (("s90", 0.6, 0.1), ("s80", 0.7, 0.2), ("s70", 0.8, 0.3), ("s50", 0.9, 0.5))
    for seed in (0, 1)
)


def section_of(runs: Runs, options: Options = OPTIONS) -> Section:
    return build_report(runs, options, count=lambda overrides, setting: {}).sections[0]


def make(tmp_path: Path, jobs: Sequence[FakeJob]) -> Runs:
    return load_runs(write_sweep(tmp_path / "sweep", tuple(jobs), {"sparsity": ABLATION}))


def test_rows_come_by_mean_rank_with_letters_of_their_groups(tmp_path: Path) -> None:
    table = section_of(make(tmp_path, ORDERED)).ranks
    distance = critical_distance(4, len(CASES))
    assert 1 < distance < 2  # neighbours are not told apart, others are
    assert table.cells() == [
        ["S = 0.5", "1.00", "a", f"{table.lines[0]['p_reference']:.2g}", "8"],
        ["S = 0.7", "2.00", "ab", f"{table.lines[1]['p_reference']:.2g}", "8"],
        ["S = 0.8 (reference)", "3.00", "bc", "", "8"],
        ["S = 0.9", "4.00", "c", f"{table.lines[3]['p_reference']:.2g}", "8"],
    ]
    assert [column.heading for column in table.shown()] == ["row", "mean rank", "group", "p (Nemenyi)", "cases"]
    assert table.lines[0]["p_reference"] < 0.05 < table.lines[1]["p_reference"]
    assert table.emphasised()[0][1] and not table.emphasised()[1][1]
    assert "chi-squared(3) = 24.00, p < 0.0001; Kendall's W = 1.00" in table.notes[1]
    assert f"Critical distance of mean ranks at the level 0.05: {distance:.2f}." in table.notes[1]


def test_without_a_difference_in_all_no_pair_has_a_p(tmp_path: Path) -> None:
    jobs = [FakeJob(row, dice=0.8, density=density) for row, density in (("s90", 0.1), ("s80", 0.2), ("s70", 0.3))]
    section = section_of(make(tmp_path, jobs))
    test = section.rankings[0].test
    assert test is not None and not test.is_significant and test.pairs.notna().all(axis=None)
    for line in section.ranks.lines:
        assert math.isnan(line["p_reference"])
        assert all(math.isnan(value) for key, value in line.items() if key.startswith("p "))
    assert "p (Nemenyi)" not in [column.heading for column in section.ranks.shown()]


def test_the_level_follows_the_confidence(tmp_path: Path) -> None:
    ranking = section_of(make(tmp_path, ORDERED), Options(resamples=100, confidence=0.8)).rankings[0]
    assert ranking.test is not None
    assert ranking.test.critical_distance == pytest.approx(critical_distance(4, len(CASES), alpha=0.2))


def test_ranks_are_of_the_cases_means_over_runs_and_classes(tmp_path: Path) -> None:
    rows = (("s90", 0.1), ("s80", 0.2), ("s70", 0.3))
    jobs = [FakeJob(row, seed, density=density) for row, density in rows for seed in (0, 1)]
    runs = make(tmp_path, jobs)
    labels = dict(zip(runs.jobs["key"], runs.jobs["label"], strict=True))
    own = {label: runs.cases[runs.cases["key"].map(labels) == label] for label in ("S = 0.9", "S = 0.8", "S = 0.7")}
    table = pd.DataFrame({label: case_means(cases) for label, cases in own.items()})
    (ranking,) = section_of(runs).rankings
    assert ranking.test is not None
    pd.testing.assert_series_equal(ranking.test.mean_ranks, rank_test(table).mean_ranks)


def test_cases_that_a_row_lacks_are_left_out_and_counted(tmp_path: Path) -> None:
    runs = make(tmp_path, ORDERED)
    gone = (runs.cases["case"].isin(CASES[:2])) & runs.cases["key"].isin(runs.jobs["key"][:2])
    section = section_of(Runs(**{**vars(runs), "cases": runs.cases[~gone]}))
    assert section.rankings[0].test is not None and section.rankings[0].test.cases == 6
    assert "over the 6 cases that all 4 rows share, without 2 that a row lacks:" in section.ranks.notes[1]


def test_too_few_rows_or_cases_are_told(tmp_path: Path) -> None:
    two = section_of(make(tmp_path / "two", ORDERED[:4])).ranks
    assert two.lines == () and two.notes == ("Not ranked: Friedman's test needs 3 methods or more; got 2.",)
    runs = make(tmp_path / "few", ORDERED)
    few = section_of(Runs(**{**vars(runs), "cases": runs.cases[runs.cases["case"].isin(CASES[:4])]})).ranks
    assert few.lines == () and len(few.notes) == 1
    assert "need 5 cases or more that all methods have; got 4 (cases of each: S = 0.9: 4," in few.notes[0]
    alone = section_of(make(tmp_path / "alone", ORDERED[:2])).ranks
    assert (alone.lines, alone.notes) == ((), ())


def test_each_dataset_has_its_own_ranks(tmp_path: Path) -> None:
    runs = make(tmp_path, ORDERED)
    for key in runs.jobs["key"][4:]:
        runs.configs[key]["data"]["name"] = "BTCV"  # type: ignore[index]
    section = section_of(runs)
    assert [(ranking.data, len(ranking.lines)) for ranking in section.rankings] == [
        ("Task04_Hippocampus", 2),
        ("BTCV", 2),
    ]
    assert [note.partition(":")[0] for note in section.ranks.notes] == ["Task04_Hippocampus", "BTCV"]


def test_rows_scored_on_other_classes_are_not_compared(tmp_path: Path) -> None:
    """The same predictions have another Dice as regions: no test, rank or bold number may take them together."""
    runs = make(tmp_path, ORDERED)
    (other,) = runs.jobs.loc[runs.jobs["row"] == "s50", "label"].unique()
    regions = runs.cases["key"].isin(runs.jobs.loc[runs.jobs["row"] == "s50", "key"])
    first = runs.cases["class"] == runs.cases["class"].iloc[0]
    runs.cases.loc[regions & first, ["class", "name"]] = ["1+2", "whole"]
    section = section_of(runs)
    lines = {line["label"]: line for line in section.accuracy.lines}
    assert math.isnan(lines[other]["p"]) and lines[other]["against"] is None
    assert lines["S = 0.9"]["p"] < 0.05 and lines["S = 0.9"]["against"] == "S = 0.8"
    (ranking,) = section.rankings  # of the other three; a row alone has no order
    assert [line["label"] for line in ranking.lines] == ["S = 0.9", "S = 0.8", "S = 0.7"]
    bold = [
        line["label"]
        for line, cells in zip(section.accuracy.lines, section.accuracy.emphasised(), strict=True)
        if any(cells)
    ]
    assert "S = 0.7" in bold and other not in bold
    assert "Rows that are scored on different classes are not compared with each other." in section.accuracy.notes


def test_runs_of_fold_all_and_single_runs_are_not_ranked(tmp_path: Path) -> None:
    runs = make(tmp_path, [*ORDERED, FakeJob("s90", 3, "all", 0.99, density=0.15)])
    (ranking,) = section_of(runs).rankings
    assert [line["label"] for line in ranking.lines] == ["S = 0.9", "S = 0.8", "S = 0.7", "S = 0.5"]
    jobs = [FakeJob(None, 0, fold, density=0.1 + fold / 10, experiment="folds") for fold in range(3)]
    folds = load_runs(write_sweep(tmp_path / "folds", tuple(jobs), {"folds": {"title": "Folds", "rows": None}}))
    assert section_of(folds).rankings == ()  # one configuration: a mean of three folds


def test_every_pair_is_in_the_csv(tmp_path: Path) -> None:
    report = build_report(make(tmp_path, ORDERED), OPTIONS, count=lambda overrides, setting: {})
    test = report.sections[0].rankings[0].test
    assert test is not None
    written = write_tables(report, tmp_path / "out")
    assert tmp_path / "out" / "sparsity-ranks.csv" in written
    with (tmp_path / "out" / "sparsity-ranks.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    for line in lines:
        assert float(line["kendall_w"]) == pytest.approx(1) and float(line["friedman_chi2"]) == pytest.approx(24)
        others = [label for label in test.mean_ranks.index if label != line["label"]]
        assert [float(line[f"p {other}"]) for other in others] == [test.pairs.loc[line["label"], o] for o in others]
        assert line[f"p {line['label']}"] == ""
    assert math.isclose(float(lines[0]["critical_distance"]), test.critical_distance)
    alone = build_report(make(tmp_path / "two", ORDERED[:4]), OPTIONS, count=lambda overrides, setting: {})
    assert not [path for path in write_tables(alone, tmp_path / "other") if path.name.endswith("-ranks.csv")]
