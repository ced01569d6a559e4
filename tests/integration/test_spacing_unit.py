"""A dataset with a wrong unit in its headers gives, in every command, the results of correct headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.check import main as check
from e2enet.data.formats.opening import open_image
from e2enet.data.synthetic.phantom import write_phantom
from e2enet.evaluation.__main__ import main as evaluate

SHAPE = ("plan.patch_size=[8,16,16]", "plan.strides=[[1,2,2],[2,2,2]]", "final.max_cases=1", "training.validate_full=0")


def in_metres(folder: Path) -> None:
    """Set the unit in every header to metres, although the lengths are in mm."""
    for path in folder.rglob("*.nii.gz"):
        image = nib.load(path)
        image.header.set_xyzt_units("meter", "sec")
        nib.save(image, path)


def test_wrong_headers_change_nothing(take_tour: Callable[..., Any], tmp_path: Path) -> None:
    folders = {name: tmp_path / name / "Task99_Wrong" for name in ("mm", "metres")}
    for folder in folders.values():
        write_phantom(folder, num_train=5, num_test=1, shape=(40, 40, 16))
    in_metres(folders["metres"])
    tours = {}
    for name, more in (("mm", []), ("metres", ["data.spacing_unit=mm"])):
        dataset = ["data=msd", "data.name=Task99_Wrong", f"paths.data={tmp_path / name}", *more]
        unit = ["--spacing-unit", "mm"] if more else []
        labels = [str(folders[name] / "labelsTs"), *unit]
        tours[name] = take_tour(dataset, folders[name] / "imagesTs", labels, *SHAPE, within=tmp_path / f"of_{name}")
    right, wrong = tours["mm"], tours["metres"]
    plans = [next(tour.prepared.rglob("plan.json")) for tour in (right, wrong)]
    assert json.loads(plans[0].read_text()) == json.loads(plans[1].read_text())
    assert plans[1].parent.name == "Task99_Wrong_in_mm"  # apart from cases prepared with the headers' unit
    assert wrong.scores == right.scores and wrong.trained == right.trained and wrong.trained
    (first,), (second,) = (sorted(tour.predictions.glob("*.nii.gz")) for tour in (right, wrong))
    assert (nib.load(first).get_fdata() == nib.load(second).get_fdata()).all()
    np.testing.assert_array_equal(open_image(first).affine, open_image(second).affine)  # its header is correct
    with pytest.raises(SystemExit):  # by their own headers the references have another grid
        evaluate([str(wrong.predictions), str(folders["metres"] / "labelsTs")])


def test_the_check_goes_by_it(tmp_path: Path) -> None:
    in_metres(write_phantom(tmp_path / "Task99_Wrong", num_train=5, num_test=1, shape=(40, 40, 16)))
    dataset, report = ["data=msd", "data.name=Task99_Wrong", f"paths.data={tmp_path}"], tmp_path / "report.json"
    assert not check([*dataset, f"report={report}"])
    assert any("its header counts in metres" in entry["problem"] for entry in json.loads(report.read_text()))
    assert not check([*dataset, "data.spacing_unit=mm", f"report={report}"])
    assert json.loads(report.read_text()) == []
    with pytest.raises((SystemExit, InputError)):
        check([*dataset, "data.spacing_unit=inch", f"report={report}"])
