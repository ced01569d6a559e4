"""Label values: renumbered all at once, then named and united to regions; impossible tables are reported."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.labels import LabelTable, apply_label_map, map_names, resolve_labels, whole_labels
from e2enet.data.formats.problems import Problem
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.formats.volume import read_label


def test_values_are_renumbered_at_once() -> None:
    array = np.array([0, 1, 2, 4, 4], np.uint8)
    np.testing.assert_array_equal(apply_label_map(array, {4: 3}), [0, 1, 2, 3, 3])
    np.testing.assert_array_equal(apply_label_map(array, {1: 2, 2: 1}), [0, 2, 1, 4, 4])
    np.testing.assert_array_equal(array, [0, 1, 2, 4, 4])
    assert apply_label_map(array, {4: 3}).dtype == np.uint8
    wide = apply_label_map(array, {4: 300})
    assert wide.dtype == np.uint16 and wide[-1] == 300


def test_without_a_change_nothing_is_copied() -> None:
    array = np.array([0, 4], np.uint8)
    assert apply_label_map(array, {}) is array
    assert apply_label_map(array, {4: 4}) is array


def test_a_label_file_is_read_through_the_map(tmp_path: Path) -> None:
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4) % 5
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii.gz")
    label, _ = read_label(tmp_path / "a.nii.gz", 2, {4: 3, 3: 0})
    expected = np.where(data == 4, 3, np.where(data == 3, 0, data)).transpose(2, 0, 1)
    np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize(("largest", "dtype"), [(254.992, np.uint8), (299.995, np.int16)])
def test_values_near_whole_numbers_are_rounded(largest: float, dtype: type) -> None:
    values = np.array([[[0, 0.009, 0.991], [1.009, 2.995, largest]]])
    labels = whole_labels(values, Path("a.nii"))
    np.testing.assert_array_equal(labels, [[[0, 0, 1], [1, 3, round(largest)]]])
    assert labels.dtype == dtype
    with pytest.raises(InputError, match=r"a\.nii: holds the value 0\.98, whole numbers"):
        whole_labels(np.where(values == 0.991, 0.98, values), Path("a.nii"))


def test_names_follow_their_values() -> None:
    found = {0: "background", 1: "core", 2: "edema", 4: "enhancing"}
    assert map_names(found, {4: 3}) == {0: "background", 1: "core", 2: "edema", 3: "enhancing"}
    assert map_names(found, {2: 1, 4: 2}) == {0: "background", 1: "core + edema", 2: "enhancing"}
    assert map_names(found, {2: 0, 4: 2}) == {0: "background", 1: "core", 2: "enhancing"}


def labels_and_problems(found: dict[int, str] | None, table: LabelTable) -> tuple[dict[int, str], str]:
    problems: list[Problem] = []
    scheme = resolve_labels(None if found is None else LabelScheme(found), table, problems)
    return scheme.names, "\n".join(str(problem) for problem in problems)


def test_the_names_of_the_table_win() -> None:
    table = LabelTable({0: "background", 1: "aorta"}, regions={"all": (1,)})
    assert labels_and_problems({0: "background", 1: "arota"}, table) == ({0: "background", 1: "aorta"}, "")
    assert labels_and_problems(None, table) == ({0: "background", 1: "aorta"}, "")


@pytest.mark.parametrize(
    ("found", "table", "message"),
    [
        ({0: "b", 1: "x", 4: "y"}, LabelTable(), "[0, 1, 4]: consecutive integers from 0 expected, [2, 3] missing"),
        (
            {0: "b", 1: "x"},
            LabelTable({0: "b", 1: "x", 2: "y"}),
            "dataset.json has the label values [0, 1], the config",
        ),
        ({0: "b"}, LabelTable(), "no foreground class"),
        ({0: "b", 1: "x"}, LabelTable(regions={"r": (1, 2)}), "region 'r' unites [1, 2]: labels out of [1] expected"),
        ({0: "b", 1: "x"}, LabelTable(regions={"r": ()}), "region 'r' unites []"),
        ({0: "b", 1: "x"}, LabelTable(regions={"r": (0, 1)}), "region 'r' unites [0, 1]"),
        ({0: "b"}, LabelTable({0: "b", 1: "x", 2: " x"}), "data.labels: labels [1, 2] are all called 'x'"),
        ({0: "b", 1: "x"}, LabelTable(label_map={-1: 1}), "label_map has {-1: 1}"),
    ],
)
def test_what_cannot_be_used_is_said(found: dict[int, str], table: LabelTable, message: str) -> None:
    assert message in labels_and_problems(found, table)[1]
