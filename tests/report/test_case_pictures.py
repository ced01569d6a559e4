"""Case pictures: which cases, slices and windows are shown, and which files they are read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from e2enet.common.errors import InputError
from e2enet.report.pictures.cases import best_other, prediction_scores, telling_pairs, worst_and_best
from e2enet.report.pictures.overlays import draw_side_by_side, draw_worst_and_best, labelled_window, telling_slice
from e2enet.report.pictures.rows import Row
from e2enet.report.pictures.scans import ScanReader
from e2enet.report.pictures.style import row_styles
from e2enet.report.results.runs import Runs, load_runs
from tests.report.conftest import FakeJob, write_job

SHAPE = (10, 8, 4)  # x, y, z of the files: z is the depth axis
# LPS, as most scanners write: the frame reverses two axes.
AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])


def row_of(label: str, jobs: list[tuple[str, int, float]], *, reference: bool = False) -> Row:
    """Return a row of finished jobs given as (key, seed, Dice)."""
    lines = [{"key": key, "fold": 0, "seed": seed, "state": "finished", "dice": dice} for key, seed, dice in jobs]
    return Row(label, pd.DataFrame(lines), row_styles(1, None)[0], reference)


def scores(values: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    """Return lines of `Runs.cases` from {(key, case): Dice per class}, plus a region, which must not count."""
    return pd.DataFrame(
        [
            {"key": key, "case": case, "class": str(label), "name": f"c{label}", "dice": dice, "region": label == 3}
            for (key, case), dices in values.items()
            for label, dice in enumerate([*dices, 0.0], start=1)
        ]
    )


CASES = scores(
    {
        ("a0", "x"): [0.9, 0.7],
        ("a0", "y"): [0.5, 0.3],
        ("a1", "x"): [0.2, 0.2],
        ("a1", "y"): [np.nan, np.nan],
        ("b0", "x"): [0.9, 0.9],
        ("b0", "y"): [0.1, np.nan],
    }
)
FIRST = row_of("A", [("a1", 1, 0.2), ("a0", 0, 0.6)], reference=True)
SECOND = row_of("B", [("b0", 0, 0.7)])


def test_a_predictions_dice_is_the_mean_of_its_known_classes() -> None:
    table = prediction_scores(FIRST, CASES).set_index(["key", "case"])["dice"].to_dict()
    assert table == pytest.approx({("a0", "x"): 0.8, ("a0", "y"): 0.4, ("a1", "x"): 0.2})
    assert prediction_scores(SECOND, CASES)["dice"].tolist() == pytest.approx([0.9, 0.1])


def test_worst_and_best_are_over_all_runs_of_a_row() -> None:
    worst, best = worst_and_best(FIRST, CASES)
    assert (worst.key, worst.case, worst.dice, worst.title) == ("a1", "x", 0.2, "worst of 3")
    assert (best.key, best.case, best.title) == ("a0", "x", "best of 3")
    (only,) = worst_and_best(SECOND, CASES[CASES["case"] == "x"])
    assert only.title == "only of 1"
    assert worst_and_best(SECOND, CASES[CASES["key"] == "a0"]) == []


def test_pairs_compare_the_first_seed_and_go_from_gain_to_loss() -> None:
    pairs = telling_pairs(FIRST, SECOND, CASES)
    assert [(pair.first.case, pair.first.key, pair.title) for pair in pairs] == [
        ("x", "a0", "+10.0 points"),
        ("y", "a0", "-30.0 points"),
    ]
    values = {(key, f"c{n}"): [0.5 + gain * n] for key, gain in (("a0", 0.0), ("b0", 0.01)) for n in range(7)}
    pairs = telling_pairs(FIRST, SECOND, scores(values))
    assert [pair.second.case for pair in pairs] == ["c6", "c3", "c0"]


def test_the_best_other_row_has_the_highest_mean_and_is_not_the_reference() -> None:
    third, empty = row_of("C", [("c0", 0, 0.5)]), row_of("D", [("d0", 0, float("nan"))])
    assert best_other([FIRST, third, SECOND, empty]) is SECOND
    assert best_other([FIRST, empty]) is None


def test_the_slice_shown_is_the_one_with_most_errors_and_the_fullest_of_equals() -> None:
    reference = np.zeros((4, 6, 6), dtype=np.uint8)
    reference[1, :2, :2], reference[2, :3, :3] = 1, 1
    assert telling_slice(reference, [reference]) == 2
    wrong = reference.copy()
    wrong[3, 0, 0] = 2
    assert telling_slice(reference, [wrong, reference]) == 3


def test_the_window_holds_every_label_and_is_square_in_millimetres() -> None:
    labels = np.zeros((200, 100), dtype=np.uint8)
    labels[50:90, 40:60] = 1
    rows, columns = labelled_window([labels], (1.0, 2.0))
    # 40 mm high and wide; with 20 % on each side 56 mm: 56 rows of 1 mm, 28 columns of 2 mm.
    assert (rows.start, rows.stop, columns.start, columns.stop) == (42, 98, 36, 64)
    rows, columns = labelled_window([np.zeros_like(labels), np.zeros_like(labels)], (1.0, 1.0))
    assert (rows, columns) == (slice(0, 200), slice(0, 100))
    corner = np.zeros((200, 100), dtype=np.uint8)
    corner[199, 99] = 1
    rows, columns = labelled_window([corner], (1.0, 1.0))
    assert (rows, columns) == (slice(176, 200), slice(76, 100))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """A finished run with its raw data and predictions of two cases."""
    raw = tmp_path / "data" / "Task99_Tiny"
    reference = np.zeros(SHAPE, dtype=np.uint8)
    reference[2:6, 2:6, 1:3], reference[6:8, 2:6, 2] = 1, 2
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    image[0, 0, 0] = 7
    ids = [f"hippocampus_{number:03d}" for number in (1, 2)]
    folder = write_job(tmp_path / "run", FakeJob(None, experiment=None, overrides=data_overrides(tmp_path)))
    for name in ids:
        for place, array in (("imagesTr", image), ("labelsTr", reference)):
            (raw / place).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, AFFINE), raw / place / f"{name}.nii.gz")
        predicted = reference.copy()
        predicted[2, 2, 1] = 2
        (folder / "validation").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(predicted, AFFINE), folder / "validation" / f"{name}.nii.gz")
    dataset: dict[str, Any] = {
        "name": "Tiny",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "anterior", "2": "posterior"},
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ids],
        "test": [],
    }
    (raw / "dataset.json").write_text(json.dumps(dataset))
    return load_runs(folder)


def data_overrides(folder: Path) -> tuple[str, ...]:
    return ("training=small", "data=msd", "data.name=Task99_Tiny", f"paths.data={folder / 'data'}")


def test_scans_and_predictions_are_read_into_one_frame(runs: Runs) -> None:
    key, reader = runs.jobs["key"][0], ScanReader(runs)
    scan = reader.scan(key, "hippocampus_001")
    assert scan.image.shape == (4, 10, 8) and scan.geometry.spacing == (3, 1, 1)
    assert scan.image[0, 9, 7] == 7  # LPS to RAS reverses both axes of a slice
    prediction = reader.prediction(key, scan)
    (wrong,) = np.argwhere(prediction != scan.reference)
    assert wrong.tolist() == [1, 7, 5]
    assert scan.labels == {0: "background", 1: "anterior", 2: "posterior"}


def test_pictures_show_image_reference_and_predictions(runs: Runs) -> None:
    row = Row("tiny", runs.jobs, row_styles(1, None)[0], True)
    reader = ScanReader(runs)
    cases = runs.cases[runs.cases["case"].isin(["hippocampus_001", "hippocampus_002"])]
    figure = draw_worst_and_best(reader, worst_and_best(row, cases))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title.split(",")[0] for title in titles] == ["image", "reference", "prediction"] * 2
    # The only wrong voxel is in slice 1, the second of four.
    assert titles[0] == "image, slice 2 of 4"
    images = [len(axes.images) for axes in figure.axes[:3]]
    assert images == [1, 2, 2]  # the scan, then the scan with the fill of the labels
    pairs = telling_pairs(row, row, cases)
    figure = draw_side_by_side(reader, ("one", "other"), pairs)
    assert len(figure.axes) == 8 and figure.axes[2].get_title(loc="left").startswith("one\nDice ")


def test_what_is_missing_is_named(runs: Runs, tmp_path: Path) -> None:
    key, reader = runs.jobs["key"][0], ScanReader(runs)
    scan = reader.scan(key, "hippocampus_001")
    with pytest.raises(InputError, match="has no labelled case hippocampus_009"):
        reader.scan(key, "hippocampus_009")
    path = runs.job_folder(key) / "validation" / "hippocampus_001.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), AFFINE), path)
    with pytest.raises(InputError, match=r"hippocampus_001\.nii\.gz: not on the grid of its image: shapes"):
        reader.prediction(key, scan)
    path.unlink()
    with pytest.raises(InputError, match=r"hippocampus_001\.nii\.gz: no such file"):
        reader.prediction(key, scan)
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="Task99_Tiny: no such folder"):
        ScanReader(runs).scan(key, "hippocampus_001")
