"""A run folder written by commit 36721c4 (28 November 2026): commands that still read it, and those that refuse it.

A network of two levels and two channels was trained on the phantom for two steps. test/ holds that version's
predictions. Not all files are kept.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.data.synthetic.phantom import write_phantom
from e2enet.inference.config import read_config
from e2enet.inference.run import run_prediction
from e2enet.report.__main__ import main as report
from e2enet.report.results.runs import load_runs
from e2enet.training.resume import resumed_config

EARLIER = Path(__file__).parent / "earlier_run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A writable copy."""
    return shutil.copytree(EARLIER, tmp_path / "run")


def test_its_checkpoint_predicts_what_it_predicted(run: Path, tmp_path: Path) -> None:
    phantom = write_phantom(tmp_path / "phantom", num_train=5, num_test=1, shape=(32, 32, 16))
    settings = {"checkpoint": str(run), "input": str(phantom / "imagesTs"), "output": str(tmp_path / "out")}
    assert run_prediction(read_config({**settings, "mirror": False})) == {}
    now, then = (nib.load(folder / "phantom_006.nii.gz") for folder in (tmp_path / "out", run / "test"))  # type: ignore[attr-defined]
    np.testing.assert_array_equal(now.affine, then.affine)
    labels = np.asanyarray(then.dataobj)
    assert len(np.unique(labels)) >= 2
    # On another processor, rounding may change a voxel on a border.
    assert np.mean(np.asanyarray(now.dataobj) != labels) < 0.001


def test_the_report_reads_it(run: Path) -> None:
    dice = json.loads((run / "summary.json").read_text())["mean"]["dice"]
    runs = load_runs(run)
    assert runs.jobs["dice"].tolist() == pytest.approx([dice])
    assert runs.jobs["state"].tolist() == ["finished"] and runs.jobs["density"].tolist() == pytest.approx(
        [0.2], rel=0.2
    )
    report([str(run), "resamples=100"])
    assert (run / "report" / "index.html").is_file()


def test_going_on_with_it_is_refused_by_a_sentence(run: Path) -> None:
    given = [f"resume={run}"]
    with pytest.raises(
        InputError, match=r"that of an earlier version of e2enet, .*lacks augmentation, loss, optimizer, schedule"
    ):
        resumed_config(compose_config(given), given)
