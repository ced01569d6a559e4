"""The report's viewer: worst and best cases of each row and two rows side by side, linked from the page."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.report.html import write_page
from e2enet.report.pictures.gallery import draw_pictures
from e2enet.report.results.options import Options
from e2enet.report.results.runs import load_runs
from e2enet.report.tables.sections import Report, build_report
from e2enet.report.viewer import link_viewer
from e2enet.report.write import write_report
from tests.report.conftest import ABLATION, CASES, FakeJob, write_sweep

SHAPE = (10, 8, 4)
ROWS = {"s90": 1, "s80": 2}  # row: the voxels along x that its predictions miss


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Two rows of one finished job each, with scans, references and predictions of all cases."""
    return report_of(tmp_path, {})


def report_of(tmp_path: Path, more: Mapping[str, str]) -> Report:
    """Write such rows; `more` are further overrides by row."""
    raw = tmp_path / "data" / "Task99_Tiny"
    overrides = ("training=small", "data=msd", "data.name=Task99_Tiny", f"paths.data={raw.parent}")
    jobs = tuple(FakeJob(row, overrides=(*overrides, *more.get(row, "").split())) for row in ROWS)
    sweep = write_sweep(tmp_path / "sweep", jobs, {"sparsity": ABLATION})
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:8, 2:6, 1:3], labels[4:8, 6:8, 1:3] = 1, 2
    for name in CASES:
        for folder, array in (("imagesTr", np.arange(320, dtype=np.int16).reshape(SHAPE)), ("labelsTr", labels)):
            save(raw / folder / f"{name}.nii.gz", array)
        for job in jobs:
            save(sweep / job.folder / "validation" / f"{name}.nii.gz", missing(labels, str(job.row)))
    description: dict[str, Any] = {"name": "Tiny", "modality": {"0": "MRI"}, "test": []}
    description["labels"] = {"0": "background", "1": "anterior", "2": "<b>posterior</b>"}
    files = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in CASES]
    (raw / "dataset.json").write_text(json.dumps({**description, "training": files}))
    return build_report(load_runs(sweep), Options(resamples=100), count=lambda overrides, setting: {})


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0])), path)


def missing(labels: np.ndarray, row: str) -> np.ndarray:
    labels = labels.copy()
    labels[1 : 1 + ROWS[row]] = 0
    return labels


def listed(viewer: Path) -> Any:
    text = (viewer / "list.js").read_text().splitlines()[1]
    return json.loads(text.removeprefix("e2enet.list(").removesuffix(");"))


def test_the_page_links_each_case_to_its_predictions(report: Report, tmp_path: Path) -> None:
    output = tmp_path / "report"
    drawn = draw_pictures(report, output / "figures", compare=("s90", "s80"))
    pictures = link_viewer(report.runs, drawn, output)
    cases = listed(output / "viewer")["cases"]
    notes = [case["note"] for case in cases]
    assert notes[:4] == [f"S = 0.{row}: {which} of 8" for row in (8, 9) for which in ("worst", "best")]
    assert len(notes) == 7 and all(re.fullmatch(r"S = 0.9 and S = 0.8: [+-]\d+\.\d points", note) for note in notes[4:])
    page = write_page(output / "index.html", report, pictures).read_text(encoding="utf-8")
    addresses = re.findall(r'href="(viewer/index.html#case=(\d+))">([^<]+)<', page)
    assert [int(number) for _, number, _ in addresses] == list(range(7))
    assert [text.split(" ")[0] for *_, text in addresses] == [case["case"] for case in cases]
    assert (output / "viewer" / "index.html").is_file()


def test_two_rows_show_the_same_case_with_their_own_predictions(report: Report, tmp_path: Path) -> None:
    pictures = draw_pictures(report, tmp_path / "figures", compare=("s90", "s80"))
    link_viewer(report.runs, pictures, tmp_path)
    content = listed(tmp_path / "viewer")
    pair = content["cases"][4]
    assert [pane["name"] for pane in pair["panes"]] == ["S = 0.9", "S = 0.8"]
    # 7 x 4 x 2 voxels of class 1, of which s90 misses 8 and s80 misses 16; class 2 is whole.
    assert [pane["dice"]["1"] for pane in pair["panes"]] == pytest.approx([2 * 48 / 104, 2 * 40 / 96])
    text = (tmp_path / "viewer" / "cases" / "4.js").read_text().removeprefix("e2enet.case(4, ").strip()[:-2]
    shown = json.loads(text)
    labels = np.asarray(nib.load(tmp_path / "data/Task99_Tiny/labelsTr" / f"{pair['case']}.nii.gz").dataobj)
    for pane, row in zip(shown["panes"], ROWS, strict=True):
        image = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(pane["prediction"])))
        np.testing.assert_array_equal(np.asarray(image.dataobj), missing(labels, row))
    assert len(content["meanings"]) == 1  # both rows have one dataset
    assert [label["name"] for label in content["meanings"][0]["labels"]] == ["anterior", "<b>posterior</b>"]


def test_kept_probabilities_of_each_row_are_there(report: Report, tmp_path: Path) -> None:
    """One case of one row has them: as `predict probabilities=true` leaves them in the folder of the predictions."""
    folder = report.runs.job_folder(
        next(job["key"] for job in report.runs.jobs.to_dict("records") if job["row"] == "s80")
    )
    pictures = draw_pictures(report, tmp_path / "figures", compare=("s90", "s80"))
    case = pictures["sparsity"][-1].cases[0].predictions[1][1].case
    stored = np.zeros((3, *SHAPE), np.float16)
    stored[1, 2, 3, 1] = 0.75
    np.savez(folder / "validation" / f"{case}.npz", probabilities=stored)
    record = folder / "validation" / ".predicted" / f"{case}.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"more": [".npz"]}))
    link_viewer(report.runs, pictures, tmp_path)
    pair = listed(tmp_path / "viewer")["cases"][4]
    assert pair["case"] == case and [pane["probabilities"] for pane in pair["panes"]] == [False, True]
    assert not (tmp_path / "viewer" / "cases" / "4-0.js").exists()
    text = (
        (tmp_path / "viewer" / "cases" / "4-1.js").read_text().removeprefix("e2enet.probabilities(4, 1, ").strip()[:-2]
    )
    channels = {
        one["name"]: nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(one["data"])))
        for one in json.loads(text)
    }
    assert list(channels) == ["anterior", "<b>posterior</b>"]
    expected = np.zeros(SHAPE)
    expected[2, 3, 1] = round(0.75 * 255) / 255
    np.testing.assert_allclose(channels["anterior"].get_fdata(), expected, atol=1e-6)


def test_rows_whose_labels_differ_are_not_put_side_by_side(tmp_path: Path) -> None:
    report = report_of(tmp_path, {"s80": "+data.label_map={2:1}"})
    pictures = draw_pictures(report, tmp_path / "figures", compare=("s90", "s80"))
    (problem,) = [picture.problem for picture in pictures["sparsity"] if picture.problem]
    assert problem.startswith(
        "label 1 is 'anterior' in S = 0.9 and 'anterior + <b>posterior</b>' in S = 0.8 (data.label"
    )
    assert problem.endswith("; expected rows whose labels mean the same")
    link_viewer(report.runs, pictures, tmp_path)
    assert [len(case["panes"]) for case in listed(tmp_path / "viewer")["cases"]] == [1, 1, 1, 1]
    meanings = listed(tmp_path / "viewer")["meanings"]
    assert [len(meaning["labels"]) for meaning in meanings] == [1, 2]  # each row its own


def test_without_scans_there_is_no_viewer_and_no_link(report: Report, tmp_path: Path) -> None:
    (tmp_path / "data").rename(tmp_path / "moved")
    drawn = draw_pictures(report, tmp_path / "figures")
    pictures = link_viewer(report.runs, drawn, tmp_path)
    assert not (tmp_path / "viewer").exists()
    assert all(picture.links == () for picture in pictures["sparsity"])
    assert any("no such folder" in picture.problem for picture in pictures["sparsity"])


def test_a_folder_of_the_users_is_not_replaced(report: Report, tmp_path: Path) -> None:
    output = tmp_path / "report"
    (output / "viewer").mkdir(parents=True)
    (output / "viewer" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"viewer: is there and not empty; .* or an earlier viewer, expected"):
        write_report(report.runs.folder, Options(resamples=100), output=output, viewer=True)
    assert [path.name for path in output.rglob("*")] == ["viewer", "notes.txt"]  # told before anything is written
