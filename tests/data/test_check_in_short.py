"""A problem that many cases share is one line with a count; two classes of one name are an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from e2enet.data.checking.report import print_report
from e2enet.data.formats.problems import case_error, case_warning, dataset_error, in_short


def test_many_cases_have_one_line() -> None:
    same = [case_warning(f"c{number}", f"{number} of 9 voxels, see /a/c{number}.nii") for number in range(20)]
    few = [case_error(f"c{number}", "no label") for number in range(5)]
    lines = [text for _, text in in_short([dataset_error("x"), *same, *few])]
    assert len(lines) == 7 and lines[0] == "x" and lines[2:] == [f"case c{number}: no label" for number in range(5)]
    assert lines[1].startswith("20 cases, such as c0: ") and lines[1].endswith("(alike: c1, c2, c3 and 16 more)")


def test_float_labels_of_all_cases_are_one_remark(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for case in "abcdef":
        label = np.zeros((8, 9, 6), np.float32)
        label[1:4, 1:4], label[5:7, 5:7] = 1, 2
        toy.write_label(case, label)
    print_report(toy.check())
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and warnings[0].startswith("warning: 6 cases, such as a: ")


def test_two_classes_of_one_name_are_one_error(toy: Any) -> None:
    toy.describe(labels={"0": "background", "1": "organ", "2": "organ"})
    ((case, severity, text, _),) = toy.problems()
    assert (case, severity) == (None, "error")
    assert text == "labels [1, 2] are all called 'organ': a name of its own for each expected"


@pytest.mark.parametrize("values", ["013", "12"])
def test_labels_that_lack_a_number_are_one_error(toy: Any, values: str) -> None:
    toy.describe(labels={value: f"organ {value}" for value in values})
    ((case, severity, text, _),) = toy.problems()
    assert (case, severity) == (None, "error") and text.startswith(f"label values are {[int(v) for v in values]}: ")


def test_labels_that_cannot_be_read_are_one_error(toy: Any) -> None:
    toy.describe(labels={"background": 0, "whole": [1, 2]}, modality="CT")
    assert [one[0] for one in toy.problems()] == [None, None] and len(toy.problems()) == 2
