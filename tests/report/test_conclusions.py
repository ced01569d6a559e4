"""Sentences under the tables say what the numbers allow: differences found or not, seeds, cases; never equality."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from e2enet.report.html import page_of, render_page
from e2enet.report.results.options import Options
from e2enet.report.results.ranks import rank_test
from e2enet.report.results.runs import load_runs
from e2enet.report.tables.conclusions import (
    accuracy_conclusion,
    cost_conclusion,
    effect_conclusion,
    published_conclusion,
    rank_conclusion,
    settings_conclusion,
    unfinished_conclusion,
)
from e2enet.report.tables.markup import to_latex, to_markdown
from e2enet.report.tables.ranks import Ranking
from e2enet.report.tables.sections import build_report
from e2enet.report.write import write_report
from tests.report.conftest import ABLATION, JOBS, FakeJob, write_sweep

OPTIONS = Options()


def line(label: str, dice: float, p: float = math.nan, r: float = math.nan, **others: Any) -> dict[str, Any]:
    """Return a line of the main table, tested against "ref" if it has a p."""
    tested = not math.isnan(p)
    known: dict[str, Any] = {
        **{"label": label, "role": "row", "data": "D", "dice": dice, "runs": 2, "seeds": 2, "folds": 1},
        **{"seed_spread": 0.5, "reference": label == "ref", "against": "ref" if tested else None},
        **{"p": p, "p_holm": p, "pairs": 40 if tested else 0, "rank_biserial": r},
        **{"params": math.nan, "latency_s": math.nan, "peak_bytes": math.nan},
    }
    return known | others


REFERENCE = line("ref", 80.0)
SCOPE = "Intervals and tests are about other cases for these networks (2 seeds and 1 fold a row): cases are not "
SCOPE += "independent trainings."


def test_rows_are_told_apart_by_the_corrected_p_and_its_direction() -> None:
    lines = [
        line("A", 82.0, 0.001, 0.9),
        line("B", 83.0, 0.0499, 0.8),
        REFERENCE,
        line("C", 75.0, 0.01, -0.9),
        line("D", 80.5, 0.05, 0.5),  # not below the level
    ]
    assert accuracy_conclusion(lines, OPTIONS) == (
        "A and B score higher and C scores lower than ref on the same 40 cases (p (Holm) < 0.05). Between D and ref no "
        f"difference was found on 40 cases; that does not show that they are equal. {SCOPE}"
    )
    # At the level 0.001 nothing is below.
    strict = accuracy_conclusion(lines, Options(confidence=0.999))
    assert strict.startswith("Between A, B, C and D and ref no difference was found") and "higher" not in strict


def test_a_difference_no_larger_than_between_seeds_is_told() -> None:
    small = accuracy_conclusion([line("A", 80.4, 0.001, 0.9), REFERENCE], OPTIONS)
    doubt = (
        "A differs from ref in mean Dice by no more than two seeds of one of these rows do, so another training may "
    )
    assert f"{doubt}undo it." in small
    assert doubt not in accuracy_conclusion([line("A", 80.6, 0.001, 0.9), REFERENCE], OPTIONS)
    # The reference's seeds are further apart than the row's.
    wide = accuracy_conclusion([line("A", 80.6, 0.001, 0.9), {**REFERENCE, "seed_spread": 0.7}], OPTIONS)
    assert doubt in wide


def test_one_seed_says_nothing_about_another_training() -> None:
    one = {"seeds": 1, "runs": 5, "folds": 5, "seed_spread": math.nan}
    words = accuracy_conclusion([line("A", 80.4, 0.001, 0.9, **one), {**REFERENCE, **one}], OPTIONS)
    assert "two seeds" not in words
    assert words.endswith(
        "(1 seed and 5 folds a row): cases are not independent trainings. What another training would give is not "
        "known."
    )
    assert "(1 to 2 seeds and 1 to 5 folds a row)" in accuracy_conclusion(
        [line("A", 80.4, 0.001, 0.9, **one), REFERENCE], OPTIONS
    )


def test_a_mean_that_contradicts_the_test_is_told() -> None:
    words = accuracy_conclusion([line("A", 79.0, 0.001, 0.6), REFERENCE], OPTIONS)
    assert "A scores higher than ref" in words
    assert "The mean Dice of A points the other way than the test: look at single cases first." in words
    assert "other way" not in accuracy_conclusion([line("A", 79.0, 0.001, -0.6), REFERENCE], OPTIONS)


def test_without_a_comparison_the_reason_is_told() -> None:
    unscored = {"dice": math.nan, "runs": 0, "seeds": 0, "folds": 0, "seed_spread": math.nan}
    assert (
        accuracy_conclusion([line("A", **unscored)], OPTIONS) == "No run has scores yet, so nothing can be concluded."
    )
    one = accuracy_conclusion([line("A", 80.0), line("B", **unscored)], OPTIONS)
    assert one.startswith("One row has scores, so nothing is compared. Intervals") and "(2 seeds and 1 fold)" in one
    other = accuracy_conclusion([line("A", 80.0), REFERENCE], OPTIONS)
    assert other.startswith("No row shares cases of one dataset with a reference, so nothing is compared.")
    lost = accuracy_conclusion([line("A", 80.0), line("B", 81.0), {**REFERENCE, **unscored}], OPTIONS)
    assert lost.startswith("The reference has no scores, so nothing is compared.")
    # Scores of training cases are no scores.
    assert "No run has" in accuracy_conclusion([line("A", 99.0, role="training")], OPTIONS)


def test_effects_tell_the_largest_difference_and_whether_its_interval_includes_0() -> None:
    sizes = {"difference": -1.5, "difference_low": -2.0, "difference_high": 0.25}
    small = {"difference": 1.0, "difference_low": 0.5, "difference_high": 2.0}
    words = effect_conclusion([line("A", 80, 0.1, 0.9, **small), line("B", 80, 0.1, -0.4, **sizes)], Options())
    assert words.startswith(
        "The largest median difference is that of B: -1.50 points of Dice (95 % interval -2.00 to +0.25, which "
        "includes 0), with r = -0.40."
    )
    below = line("B", 80, 0.1, -0.4, **{**sizes, "difference_high": -0.25})
    assert "-2.00 to -0.25), with" in effect_conclusion([below], Options())
    assert "0.50 to +2.00), with" in effect_conclusion([line("A", 80, 0.1, 0.9, **small)], Options())
    assert effect_conclusion([line("A", 80, 1.0, 0.0, difference=0.0, difference_low=math.nan)], Options()) == ""


def ranking(ranks: dict[str, list[float]], **tests: dict[str, Any]) -> Ranking:
    """Rank rows by scores that fall with their ranks; `tests` are columns of their lines."""
    scores = -pd.DataFrame(ranks)
    return Ranking("D", tuple(line(label, 80.0, **tests.get(label, {})) for label in ranks), rank_test(scores))


def test_ranks_name_the_best_and_whom_it_is_told_apart_from() -> None:
    ordered = {"A": [1.0] * 10, "B": [2.0] * 10, "ref": [3.0] * 10}
    words = rank_conclusion([ranking(ordered)])
    assert words == (
        "Over 10 cases the 3 rows differ (Friedman); Kendall's W is 1.00, and 1 if all cases rank the rows alike. A "
        "has the best mean rank and is told apart from ref. From B no difference was found; that does not show that "
        f"they are equal. {SCOPE}"
    )


def test_rows_of_equal_rank_share_the_best_and_labels_with_commas_are_quoted() -> None:
    twins = {"A, twin": [1.0, 2] * 5, "B": [2.0, 1] * 5, "C, x": [3.0] * 10, "ref": [4.0] * 10}
    best = '"A, twin" and B have the best mean rank and are told apart from "C, x" and ref. Intervals'
    assert best in rank_conclusion([ranking(twins)])
    words = accuracy_conclusion([line("A, b", 82.0, 0.001, 0.9), line("C", 82.0, 0.001, 0.9), REFERENCE], OPTIONS)
    assert words.startswith('"A, b" and C score higher than ref')


def test_ranks_without_a_difference_are_not_called_equal() -> None:
    even = {"A": [1.0, 2, 3] * 3, "B": [2.0, 3, 1] * 3, "C": [3.0, 1, 2] * 3}
    words = rank_conclusion([ranking(even)])
    assert words.startswith(
        "Over 9 cases no difference between the 3 rows was found (Friedman); that does not show that they are equal, "
        "and no pair is compared."
    )
    assert "best" not in words
    two = rank_conclusion([ranking(even), replace(ranking(even), data="E"), Ranking("F", (), problem="too few")])
    assert two.startswith("D: Over 9 cases") and " E: Over 9 cases" in two
    assert rank_conclusion([Ranking("F", (), problem="too few")]) == ""


def test_friedman_without_a_pair_is_told() -> None:
    # Rare, so it is looked for: all four are a little apart, and no two are far enough apart.
    random = np.random.default_rng(5)
    for _ in range(2000):
        scores = pd.DataFrame(random.normal(size=(14, 4)), columns=list("ABCD"))
        test = rank_test(scores)
        if test.is_significant and len(test.groups()) == 1:
            break
    lines = tuple(line(label, 80.0) for label in "ABCD")
    words = rank_conclusion([Ranking("D", lines, test)])
    assert "Nemenyi's test cannot say which: no pair is told apart; that does not show that they are equal." in words


def test_disagreement_of_the_tests_is_told() -> None:
    ordered = {"A": [1.0] * 10, "B": [2.0] * 10, "ref": [3.0] * 10}
    words = rank_conclusion([ranking(ordered, A={"p": 0.2, "r": 0.3}, B={"p": 0.002, "r": 1.0})])
    assert "Of B Wilcoxon's test finds a difference from the reference, Nemenyi's does not: it compares all" in words
    assert "Of A Nemenyi's test finds a difference from the reference, Wilcoxon's does not: that one weighs" in words
    agreed = rank_conclusion([ranking(ordered, A={"p": 0.002, "r": 1.0}, B={"p": 0.2, "r": 0.3})])
    assert "does not:" not in agreed


def test_costs_name_fewest_and_most_parameters() -> None:
    rows = [line("A", 80.0, params=2.0), line("B", 80.0, params=5.0), line("C", 80.0, params=9.0, role="training")]
    words = cost_conclusion(rows)
    assert words == (
        "Of these runs, A has the fewest active parameters (2.000 M) and B the most (5.000 M, 2.5 times as many). "
        "Parameters and FLOPs are counted exactly; they do not say which row is faster."
    )
    equal = cost_conclusion([*rows, line("D", 80.0, params=2.0), line("E", 80.0, params=5.0)])
    assert equal.startswith("Of these runs, A and D have the fewest active parameters (2.000 M) and B and E the most")
    assert cost_conclusion([line("A", 80.0)]).startswith("Parameters and FLOPs are counted exactly")
    assert "measured on one machine" in cost_conclusion([line("A", 80.0, latency_s=0.1)])


def test_published_numbers_inside_are_not_reproduced_ones() -> None:
    lines = [{"inside": "yes"}, {"inside": "partly"}, {"inside": "no"}, {"inside": ""}]
    words = published_conclusion(lines, 1)
    assert "inside the interval in 1 of 3 rows. Inside does not show that it is reproduced" in words
    assert words.endswith("and these runs differ from full scale in 1 setting.")
    assert published_conclusion(lines[:1], 0).endswith("about other cases alone.")
    assert published_conclusion(lines[3:], 2) == published_conclusion([], 2) == ""


def test_counts_of_settings_and_jobs() -> None:
    assert settings_conclusion(0) == unfinished_conclusion(0) == ""
    assert "in 1 setting, so a difference from published numbers may come from it." in settings_conclusion(1)
    assert "in 3 settings" in settings_conclusion(3) and "cannot be laid to one of them" in settings_conclusion(3)
    assert unfinished_conclusion(1).startswith("1 job has no scores") and "its row stands" in unfinished_conclusion(1)
    assert unfinished_conclusion(2).startswith("2 jobs have no scores")


@pytest.mark.parametrize("ending", [".md", ".tex", ".html", "terminal"])
def test_every_table_of_a_sweep_has_its_words(
    sweep_folder: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = build_report(load_runs(sweep_folder), Options(resamples=100), count=lambda overrides, setting: {})
    section = report.sections[0]
    tables = [table for table in (*section.tables, report.unfinished) if table.lines]
    assert len(tables) == 6 and all(table.conclusion for table in tables)
    if ending == "terminal":
        write_report(sweep_folder, Options(resamples=100))
        printed = " ".join(capsys.readouterr().out.split())
        assert "S = 0.9 scores lower than S = 0.8" in printed and "2 jobs have no scores" in printed
    elif ending == ".html":
        page = render_page(page_of(report, {}))
        assert page.count("<strong>In words:</strong>") == 5  # jobs have a list of their own
        assert "Between S = 0.7 and S = 0.8 no difference was found on 8 cases" in page
    elif ending == ".md":
        assert all("**In words:** " in to_markdown(table) for table in tables)
    else:
        assert "S = 0.9 scores lower than S = 0.8 on the same 8 cases (p (Holm) \\textless{} 0.05)." in to_latex(
            section.accuracy, "x"
        )


def test_seeds_are_compared_on_one_fold(tmp_path: Path) -> None:
    jobs = (FakeJob("s80", 0, 0, 0.80), FakeJob("s80", 1, 0, 0.82), FakeJob("s80", 0, 1, 0.60))
    runs = load_runs(write_sweep(tmp_path / "sweep", (*jobs, JOBS[0]), {"sparsity": ABLATION}))
    (section,) = build_report(runs, Options(resamples=100), count=lambda overrides, setting: {}).sections
    found = {line["row"]: line for line in section.lines}
    dice = runs.jobs["dice"]
    assert found["s80"]["seed_spread"] == pytest.approx(100 * abs(dice[1] - dice[0]))
    assert (found["s80"]["seeds"], found["s80"]["folds"], found["s90"]["seeds"]) == (2, 2, 1)
    assert math.isnan(found["s90"]["seed_spread"]) and found["s50"]["seeds"] == 0
