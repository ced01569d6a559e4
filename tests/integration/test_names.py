"""Names, ids and paths that look like markup, mathematics or patterns stay plain text in every command and file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.overrides import quoted
from e2enet.data.check import main as check
from e2enet.evaluation.out_of_fold import main as score_out_of_fold
from e2enet.report.__main__ import main as report

pytestmark = pytest.mark.integration

CLASSES = ["Anterior [/T1]", "$x_{ [red]*P*<b>[/red]"]
IDS = ["case[1]", "[b]x[|b]", "$a^$ &lt;", "_*?", ":smile: ~{0}", "[!a]"]
SHAPE = (20, 18, 10)


def write_dataset(folder: Path) -> Path:
    """Write a Decathlon folder of six cases with these names: noise with a bright block per class."""
    generator = np.random.default_rng(0)
    for name in IDS:
        label = np.zeros(SHAPE, np.uint8)
        label[3:9, 4:12, 2:7], label[11:17, 4:12, 2:7] = 1, 2
        image = generator.normal(100, 10, SHAPE).astype(np.float32) + 60 * label
        for part, array in (("imagesTr", image), ("labelsTr", label)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), folder / part / f"{name}.nii.gz")
    description = {
        "name": "Task [/x]",
        "modality": {"0": "MR [/I]"},
        "labels": {"0": "background", **{str(value): name for value, name in enumerate(CLASSES, 1)}},
        "training": [{part: f"./{part}sTr/{name}.nii.gz" for part in ("image", "label")} for name in IDS],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_names_in_brackets_through_every_command(
    tmp_path: Path,
    take_tour: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "250")  # wide enough for all tables
    place = tmp_path / "a [bold] b" / "$[/c]_?*"
    folder = write_dataset(place / "[red]")
    dataset = ["data=msd", f"data.name={quoted(folder.name)}", f"paths.data={quoted(str(place))}"]
    tour = take_tour(
        dataset,
        folder / "imagesTr",
        [str(folder / "labelsTr")],
        "final.overlay=true",
        within=place,
        runs="runs <i>[b]",
    )
    tour.assert_agreement()
    assert {case for case, _ in tour.scores} == set(IDS)
    assert {row["name"] for row in tour.scores.values()} == set(CLASSES)
    with (tour.run / "metrics.csv").open(newline="") as stream:
        assert {f"val/dice_{name}" for name in CLASSES} <= set(next(csv.reader(stream)))
    assert not check([*dataset, "verbose=true"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*CLASSES, *IDS, str(folder), str(tour.predictions), "MR [/I]"])

    report([str(tour.run.parent), "resamples=100"])
    written = tour.run.parent / "report"
    page = (written / "index.html").read_text()
    assert "<i>" not in page and page.count("runs &lt;i&gt;[b]") >= 3
    assert r"**runs \<i\>\[b\]: accuracy**" in (written / "runs.md").read_text()
    shown = capsys.readouterr().out
    assert str(written) in shown and "runs <i>[b]: accuracy" in shown
    score_out_of_fold([str(tour.run.parent), "--allow-missing-folds", "--postprocessing"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in CLASSES)
