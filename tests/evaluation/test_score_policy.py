"""Scores of missing structures, worked by hand, and the summary over cases."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from rich.console import Console

from e2enet.evaluation import Score, score_case, scores_table, summarise

SPACING = (3.0, 1.0, 2.0)
SHAPE = (4, 5, 6)
DIAGONAL = math.sqrt(12**2 + 5**2 + 12**2)


def label_map(*filled: tuple[int, int]) -> np.ndarray:
    """Return a map with label `value` in slice `index` for each (value, index)."""
    array = np.zeros(SHAPE, np.uint8)
    for value, index in filled:
        array[index, 1:4, 1:5] = value
    return array


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        (True, True, (1.0, 1.0, 0.0, "scored")),
        (False, True, (0.0, 0.0, DIAGONAL, "missed")),
        (True, False, (0.0, 0.0, DIAGONAL, "invented")),
        (False, False, (math.nan, math.nan, math.nan, "absent")),
    ],
)
def test_missing_structures(predicted, true, expected):
    prediction = label_map(*([(1, 2)] if predicted else []))
    reference = label_map(*([(1, 2)] if true else []))
    (score,) = score_case("a", prediction, reference, SPACING, [0, 1])
    assert (score.case, score.label, score.outcome) == ("a", 1, expected[3])
    assert (score.dice, score.nsd, score.hd95) == pytest.approx(expected[:3], nan_ok=True)


def test_classes_are_scored_apart():
    prediction = label_map((1, 0), (2, 2))
    reference = label_map((1, 0), (2, 3))
    first, second = score_case("a", prediction, reference, SPACING, [1, 2])
    assert (first.dice, first.nsd, first.hd95) == (1.0, 1.0, 0.0)
    assert (second.dice, second.nsd, second.hd95) == (0.0, 0.0, pytest.approx(3.0))
    (wide,) = score_case("a", prediction, reference, SPACING, [2], nsd_tolerance=3.0)
    assert wide.nsd == 1.0


def test_summary_worked_by_hand():
    nan = math.nan
    scores = [
        Score("a", 1, 0.8, 0.9, 2.0, "scored"),
        Score("b", 1, 0.0, 0.0, 20.0, "missed"),
        Score("c", 1, 0.6, 0.3, 5.0, "scored"),
        Score("a", 2, nan, nan, nan, "absent"),
        Score("b", 2, 0.0, 0.0, 30.0, "invented"),
        Score("c", 2, nan, nan, nan, "absent"),
        *(Score(case, 3, nan, nan, nan, "absent") for case in "abc"),
    ]
    summary = summarise(scores, {0: "background", 1: "liver", 2: "spleen", 3: "gland"})
    assert summary["n_cases"] == 3
    assert list(summary["classes"]) == ["1", "2", "3"]
    liver, spleen, gland = summary["classes"].values()
    assert {"name": "liver", "n": 3, "missed": 1, "invented": 0, "absent": 0}.items() <= liver.items()
    assert (liver["dice"], liver["nsd"], liver["hd95"]) == pytest.approx((1.4 / 3, 0.4, 9.0))
    assert liver["sd"]["hd95"] == pytest.approx(math.sqrt((7**2 + 11**2 + 4**2) / 2))
    assert {"dice": 0.0, "hd95": 30.0, "n": 1, "invented": 1, "absent": 2}.items() <= spleen.items()
    assert (gland["dice"], gland["nsd"], gland["hd95"], gland["n"]) == (None, None, None, 0)
    # The mean over classes leaves out the gland, which no case has.
    assert summary["mean"] == pytest.approx({"dice": 0.7 / 3, "nsd": 0.2, "hd95": 19.5})
    json.dumps(summary, allow_nan=False)


def test_missing_an_organ_lowers_the_mean():
    found = [Score("a", 1, 0.5, 0.5, 9.0, "scored"), Score("b", 1, 0.9, 0.9, 1.0, "scored")]
    lost = [Score("a", 1, 0.0, 0.0, 90.0, "missed"), found[1]]
    assert summarise(lost, {1: "x"})["mean"]["dice"] < summarise(found, {1: "x"})["mean"]["dice"]


def test_table_shows_classes_counts_and_mean():
    scores = [
        Score("a", 1, 0.51239, 0.25, 9.0, "scored"),
        Score("a", 2, math.nan, math.nan, math.nan, "absent"),
    ]
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(scores_table(summarise(scores, {1: "liver", 2: "spleen"}), title="Test cases"))
    text = console.export_text()
    assert "Test cases (1 cases)" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert ["1 liver", "0.5124", "0.2500", "9.00", "1", "0", "0"] in rows
    assert ["2 spleen", "-", "-", "-", "0", "0", "0"] in rows
    assert ["mean of classes", "0.5124", "0.2500", "9.00", "", "0", "0"] in rows


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="differ in shape"):
        score_case("a", np.zeros((2, 2, 2)), np.zeros((2, 2, 3)), SPACING, [1])
