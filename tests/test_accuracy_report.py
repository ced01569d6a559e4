"""Figure and tables of `python -m benchmarks.accuracy report`, from small files written by hand."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy_report import draw_curves, read_curves, write_report, write_text
from e2enet.common.errors import InputError
from e2enet.common.files import write_json

POINT = {
    "dataset": "hippocampus",
    "method": "nnunet",
    "seed": 0,
    "minutes": 10.0,
    "steps": 150,
    "seconds_per_step": 4.0,
    "clock_seconds": 600.0,
    "dice": 0.5,
    "classes": {"anterior": 0.4, "posterior": 0.6},
    "cases": 40,
    "each": False,
    "processor": "a processor",
    "threads": 2,
    "run_threads": 2,
    "timing": "measured over 20 steps, 2 threads of a processor",
    "patch_size": [40, 56, 40],
    "batch_size": 9,
    "versions": "nnunetv2 2.8.1",
    "settings": ["2 threads", "default plan"],
}
# Dice of each seed by method and minutes.
DICE = {("nnunet", 10.0): [0.5, 0.54], ("nnunet", 20.0): [0.7, 0.72], ("s80", 10.0): [0.8, 0.84], ("s80", 20.0): [0.86]}


def write_point(work: Path, **changes: Any) -> Path:
    point = POINT | changes
    job = f"{point['method']}_s{point['seed']}"
    path = work / str(point["dataset"]) / "jobs" / job / "points" / f"{point['minutes']:g}.json"
    write_json(path, point)
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for (method, minutes), found in DICE.items():
        own = {
            "seconds_per_step": 0.5,
            "patch_size": [40, 40, 56],
            "batch_size": 4,
            "versions": "e2enet",
            "settings": [],
        }
        for seed, dice in enumerate(found):
            more = own if method == "s80" else {}
            seconds = own["seconds_per_step"] if more else 4.0
            steps = int(minutes * 60 / seconds)
            clock = 60 * minutes * (1.25 if seed else 1)
            place = {"method": method, "minutes": minutes, "seed": seed}
            write_point(tmp_path / "work", dice=dice, **place, **more, steps=steps, clock_seconds=clock)
    return tmp_path / "work"


def test_the_table(work: Path) -> None:
    lines = write_text(read_curves([work])).splitlines()
    assert lines[:8] == [
        "## Hippocampus MRI",
        "",
        "Mean Dice of 40 whole validation cases after so many minutes of training (one training): mean ± standard "
        "deviation of 2 seeds",
        "",
        "| method          |    patch, batch | s per step | steps |        10 min |        20 min |",
        "| --------------- | --------------: | ---------: | ----: | ------------: | ------------: |",
        "| nnU-Net         | 40 x 56 x 40, 9 |       4.00 |   300 | 0.520 ± 0.028 | 0.710 ± 0.014 |",
        "| E2ENet, S = 0.8 | 40 x 40 x 56, 4 |       0.50 |  2400 | 0.820 ± 0.028 | 0.860 (n = 1) |",
    ]
    assert lines[9:] == [
        "- Trained on: a processor, 2 threads.",
        "- Minutes are steps times the seconds per step that were measured before. On the clock the steps took, in "
        "these units: nnU-Net 1.00 to 1.25, E2ENet, S = 0.8 1.00 to 1.25.",
        "- nnU-Net (nnunetv2 2.8.1):",
        "    - seconds per step: measured over 20 steps, 2 threads of a processor",
        "    - 2 threads",
        "    - default plan",
        "- E2ENet, S = 0.8 (e2enet):",
        "    - seconds per step: measured over 20 steps, 2 threads of a processor",
    ]


def test_fewer_threads_than_those_that_count_are_told(tmp_path: Path) -> None:
    write_point(tmp_path, run_threads=1)
    assert "- Trained on: a processor, 2 threads, run on 1." in write_text(read_curves([tmp_path]))


def test_one_seed_and_a_point_that_is_missing(tmp_path: Path) -> None:
    write_point(tmp_path, minutes=20.0, each=True)
    write_point(tmp_path, method="dense", each=True)
    text = write_text(read_curves([tmp_path]))
    assert "(a training each): one seed" in text
    assert "|      - |  0.500 |" in text and "|  0.500 |      - |" in text


def test_the_figure(work: Path) -> None:
    write_point(work.parent / "other", dataset="acdc", method="s80", minutes=80.0)
    figure = draw_curves(read_curves([work, work.parent / "other"]))
    left, right = figure.axes
    assert left.get_title("left") == "Hippocampus MRI: validation Dice"
    assert right.get_title("left") == "Cardiac cine MRI (ACDC): validation Dice"
    assert left.get_xscale() == "log" and [tick.get_text() for tick in left.get_xticklabels()] == ["10", "20"]
    drawn = left.yaxis.get_transform().transform(np.array([0.8, 0.9, 0.95]))  # halves of what is lacking
    assert drawn[2] - drawn[1] == pytest.approx(drawn[1] - drawn[0])
    assert [tick.get_text() for tick in left.get_yticklabels()][:3] == ["0.50", "0.60", "0.70"]
    theirs, ours = left.lines
    np.testing.assert_allclose(theirs.get_ydata(), [0.52, 0.71])
    np.testing.assert_allclose(ours.get_ydata(), [0.82, 0.86])
    assert (
        ours.get_xdata().tolist() == [10, 20] and ours.get_color() == right.lines[0].get_color() != theirs.get_color()
    )
    corners = {tuple(corner) for corner in left.collections[0].get_paths()[0].vertices.tolist()}
    assert corners == {(10, 0.5), (10, 0.54), (20, 0.7), (20, 0.72)}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["nnU-Net", "E2ENet, S = 0.8"]


def test_files_of_a_report(work: Path, tmp_path: Path) -> None:
    picture, text, table = write_report([work], tmp_path / "report")
    assert picture.stat().st_size > 10_000 and text.read_text(encoding="utf-8").startswith("## Hippocampus MRI")
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 7 and rows[-1]["method"] == "s80" and rows[-1]["dice"] == "0.86"
    first = picture.read_bytes()
    write_report([work], tmp_path / "report")
    assert picture.read_bytes() == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dice": None}, "dice is None"),
        ({"seed": True}, "seed is True"),
        ({"method": "unet"}, "unet on hippocampus"),
    ],
)
def test_a_file_that_is_no_point_is_named(work: Path, changes: dict[str, Any], message: str) -> None:
    path = write_point(work, minutes=40.0)
    write_json(path, POINT | changes)
    with pytest.raises(InputError, match=f"{path}: {message}; a point of benchmarks.accuracy expected"):
        read_curves([work])


def test_missing_and_repeated_points_are_named(work: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"empty: no scored point \(DATASET/jobs/JOB/points"):
        read_curves([tmp_path / "empty"])
    again = write_point(tmp_path / "second")
    with pytest.raises(
        InputError, match=f"{again}: the same dataset, method, seed and minutes as {work}.*; one of them"
    ):
        read_curves([work, tmp_path / "second"])
    write_json(again, {"dice": 1})
    with pytest.raises(InputError, match=f"{again}: lacks dataset, method"):
        read_curves([tmp_path / "second"])
