"""The largest component of a class, and the file that lists the classes reduced to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.scheme import LabelScheme
from e2enet.inference.finished import file_digest
from e2enet.inference.largest_component import find_postprocessing, keep_largest, read_postprocessing, require_labels

CONTENT = {
    "keep_largest": [2],
    "classes": {"1": {"name": "liver"}, "2": {"name": "spleen"}},
    "runs": ["fold0", "fold1"],
}
Write = Callable[..., Path]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for name in ("fold0", "fold1", "other"):
        (tmp_path / "sweep" / name).mkdir(parents=True)
    return tmp_path / "sweep"


@pytest.fixture
def write(sweep: Path) -> Write:
    def write_choice(name: str = "s80", **changes: object) -> Path:
        path = sweep / "out_of_fold" / name / "postprocessing.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**CONTENT, **changes}))
        return path

    return write_choice


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_small_components_become_background(dtype: type) -> None:
    labels = np.zeros((6, 7, 8), dtype)
    labels[0, 0, 0:3] = 1
    labels[5, 6, 7] = 1
    labels[3, 3, 3] = labels[5, 0, 0] = 2
    expected = labels.copy()
    expected[5, 6, 7] = 0
    kept = keep_largest(labels, [1])
    assert kept.dtype == dtype
    np.testing.assert_array_equal(kept, expected)
    assert labels[5, 6, 7] == 1  # the argument is not changed


def test_voxels_that_share_a_corner_are_one_component() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 0, 2] = 1
    np.testing.assert_array_equal(keep_largest(labels, [1]), labels)
    labels[0, 0, 2] = 1  # two voxels from [0, 0, 0]; [1, 1, 1] joins them
    np.testing.assert_array_equal(keep_largest(labels, [1]), labels)
    labels[3, 3, 3] = 1  # two steps from [1, 1, 1] along each axis
    assert keep_largest(labels, [1])[3, 3, 3] == 0


def test_classes_do_not_join_and_other_classes_stay() -> None:
    labels = np.zeros((3, 3, 7), np.uint8)
    labels[1, 1] = [1, 1, 2, 1, 1, 1, 0]
    np.testing.assert_array_equal(keep_largest(labels, [1])[1, 1], [0, 0, 2, 1, 1, 1, 0])
    np.testing.assert_array_equal(keep_largest(labels, [2, 3]), labels)
    np.testing.assert_array_equal(keep_largest(labels, []), labels)
    with pytest.raises(ValueError, match="labels from 1"):
        keep_largest(labels, [0])


def test_equally_large_components_all_stay_whatever_the_order_of_the_axes() -> None:
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[0, 0, 0:2] = labels[4, 5, 5:7] = labels[2, 2, 2] = 1
    expected = labels.copy()
    expected[2, 2, 2] = 0
    np.testing.assert_array_equal(keep_largest(labels, [1]), expected)
    turned = keep_largest(labels[::-1].transpose(2, 0, 1), [1]).transpose(1, 2, 0)[::-1]
    np.testing.assert_array_equal(turned, expected)


def test_a_choice_is_found_by_the_runs_that_it_was_made_on(sweep: Path, write: Write) -> None:
    assert find_postprocessing([sweep / "fold0"]) is None
    path = write()
    write("another", runs=["other"], keep_largest=[])
    both = find_postprocessing([sweep / "fold1", sweep / "fold0"])
    assert both is not None and both.path == path.resolve() and both.classes == (2,)
    assert both.describe() == "largest component of 2 spleen"
    one = find_postprocessing([sweep / "fold0"])
    assert one == both
    assert find_postprocessing([sweep / "fold0", sweep / "other"]) is None
    other = find_postprocessing([sweep / "other"])
    assert other is not None and other.classes == () and other.describe().startswith("none")


def test_choices_that_contradict_each_other(sweep: Path, write: Write) -> None:
    write()
    write("again")
    assert find_postprocessing([sweep / "fold0"]) is not None  # two equal choices
    write("again", keep_largest=[1])
    with pytest.raises(InputError, match=r"differ; expected one, or postprocessing=FILE"):
        find_postprocessing([sweep / "fold0"])


def write_weights(run: Path, text: str) -> str:
    """Give a run weights; return their digest."""
    path = run / "checkpoints" / "best.ckpt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return file_digest(path)


def test_a_choice_does_not_outlive_the_weights_that_decided(sweep: Path, write: Write) -> None:
    runs = [sweep / "fold0", sweep / "fold1"]
    digests = {run.name: write_weights(run, f"{run.name} after 100 epochs") for run in runs}
    keys = {"experiment": None, "row": "s80 (a=1)", "seed": 0}
    path = write(checkpoints=digests, **keys)
    assert find_postprocessing(runs) is not None
    write_weights(runs[1], "fold1 after 400 epochs")
    with pytest.raises(InputError, match="was chosen by other weights than those in") as caught:
        find_postprocessing(runs)
    command = f"python -m e2enet.evaluation.out_of_fold {sweep} --row 's80 (a=1)' --seed 0 --postprocessing"
    assert str(path) in str(caught.value) and f"({command})" in str(caught.value)
    assert "fold1/checkpoints/best.ckpt" in str(caught.value) and "fold0/" not in str(caught.value)
    assert find_postprocessing(runs[:1]) is not None  # this run has the weights that it had
    write()  # as earlier versions wrote it
    assert find_postprocessing(runs) is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": ["fold0"]}, "not a choice of postprocessing"),
        ({"keep_largest": [3]}, r"keep_largest names \[3\]; expected labels out of \[1, 2\]"),
        ({"classes": None}, "not a choice of postprocessing"),
        ({"runs": 3}, "not a choice of postprocessing"),
        ({"keep_largest": ["x"]}, "not a choice of postprocessing"),
    ],
)
def test_files_that_are_no_choice(write: Write, changes: dict[str, object], message: str) -> None:
    path = write(**changes)
    with pytest.raises(InputError, match=message) as caught:
        read_postprocessing(path)
    assert str(path) in str(caught.value)


def test_a_choice_serves_models_of_the_same_classes(write: Write) -> None:
    choice = read_postprocessing(write())
    require_labels(choice, LabelScheme({0: "background", 1: "liver", 2: "spleen"}))
    with pytest.raises(InputError, match="the model has"):
        require_labels(choice, LabelScheme({0: "background", 1: "spleen", 2: "liver"}))
