"""A finished case is kept only if the same weights and settings made it from the same scan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.inference import predictor, run
from e2enet.inference.config import PredictConfig
from e2enet.inference.finished import file_digest
from e2enet.inference.run import run_prediction

Predict = Callable[..., dict[str, str]]


@pytest.fixture
def scans(tmp_path: Path, scan: nib.Nifti1Image) -> Path:
    """Folder with the cases a and b."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in "ab":
        nib.save(scan, folder / f"{name}.nii.gz")
    return folder


@pytest.fixture
def predict(write_checkpoint, scans: Path, tmp_path: Path) -> Predict:
    """Return a function that predicts the scans into out/ with the checkpoint of a seed."""
    checkpoints = {seed: write_checkpoint(f"{seed}.ckpt", seed=seed) for seed in (0, 1)}

    def predict_scans(seed: int = 0, **changes: Any) -> dict[str, str]:
        settings = {"mirror": False, "device": "cpu"} | changes
        return run_prediction(PredictConfig((checkpoints[seed],), scans, tmp_path / "out", **settings))

    return predict_scans


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def times(out: Path) -> dict[str, int]:
    """Return when each result was written, in nanoseconds."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(out.glob("*.*")) if not path.name.startswith(".")}


def test_only_what_is_missing_is_predicted(predict: Predict, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict() == {}
    before = times(out)
    assert list(before) == ["a.nii.gz", "b.nii.gz"]
    (out / "b.nii.gz").unlink()
    capsys.readouterr()
    assert predict(batch_size=3) == {}  # the batch size does not change results
    assert "1 of 2 cases are in" in capsys.readouterr().out
    after = times(out)
    assert after["a.nii.gz"] == before["a.nii.gz"] and after["b.nii.gz"] > before["b.nii.gz"]
    assert predict(overlay=True) == {}  # the overlays are missing
    assert list(times(out)) == ["a.nii.gz", "a.png", "b.nii.gz", "b.png"]
    full = times(out)
    assert predict(overlay=True) == {} and predict() == {} and times(out) == full


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "a.nii.gz: by other checkpoints"),
        ({"step": 0.25}, "a.nii.gz: step 0.5 -> 0.25"),
        ({"mirror": True}, "a.nii.gz: mirror False -> True"),
        ({"precision": "bf16"}, "a.nii.gz: precision float32 -> bfloat16"),
    ],
)
def test_other_weights_and_settings_are_never_mixed(
    predict: Predict, out: Path, changes: dict[str, Any], message: str
) -> None:
    assert predict() == {}
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"results that were made otherwise.*another folder, or overwrite=true") as e:
        predict(**changes)
    assert message in str(e.value) and "b.nii.gz" in str(e.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert predict(**changes, overwrite=True) == {}
    assert predict(**changes) == {}  # the results are kept now


def test_the_record_names_the_weights_that_were_used(
    write_checkpoint, predict: Predict, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that goes on replaces its checkpoint between loading and prediction."""
    used = file_digest(tmp_path / "0.ckpt")
    newer = write_checkpoint("newer.ckpt", seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(run, "set_prediction_flags", lambda device: newer.replace(tmp_path / "0.ckpt"))
        assert predict() == {}
    assert not newer.exists() and file_digest(tmp_path / "0.ckpt") != used
    assert json.loads((out / ".predicted" / "a.json").read_text())["recipe"]["checkpoints"] == [used]
    with pytest.raises(InputError, match=r"a\.nii\.gz: by other checkpoints"):
        predict()


def test_another_scan_of_the_same_name(predict: Predict, scans: Path, out: Path, scan: nib.Nifti1Image) -> None:
    assert predict() == {}
    before = times(out)
    (scans / "a.nii.gz").touch()
    assert predict() == {} and times(out) == before  # the date does not matter, as of a copy
    nib.save(nib.Nifti1Image(scan.get_fdata(dtype=np.float32) + 1, scan.affine), scans / "b.nii.gz")
    with pytest.raises(InputError, match=r"b\.nii\.gz: it was made of another scan of this name") as caught:
        predict()
    assert "a.nii.gz" not in str(caught.value)


@pytest.mark.parametrize("damage", [None, "{", "[]", '{"recipe": 1, "scan": "", "more": [], "finished": true}'])
def test_a_file_of_unknown_origin_is_not_replaced(predict: Predict, out: Path, damage: str | None) -> None:
    out.mkdir()
    (out / "a.nii.gz").write_bytes(b"drawn by hand")
    if damage is not None:
        (out / ".predicted").mkdir()
        (out / ".predicted" / "a.json").write_text(damage)
    with pytest.raises(InputError, match=r"a\.nii\.gz: nothing tells how it was made"):
        predict()
    assert (out / "a.nii.gz").read_bytes() == b"drawn by hand" and not (out / "b.nii.gz").exists()


def test_a_result_whose_run_was_stopped_is_made_anew(
    predict: Predict, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict() == {}
    good = (out / "a.nii.gz").read_bytes()

    def killed(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt  # before any of the new result is written

    with monkeypatch.context() as patch:
        patch.setattr(predictor, "write_prediction", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(seed=1, overwrite=True)
    assert (out / "a.nii.gz").read_bytes() == good
    assert json.loads((out / ".predicted" / "a.json").read_text())["finished"] is False
    with pytest.raises(InputError, match="by other checkpoints"):
        predict()  # a.nii.gz may be of either run
    with pytest.raises(InputError, match=r"b\.nii\.gz: by other checkpoints") as caught:
        predict(seed=1)  # a would be predicted again, b is of the first run
    assert "a.nii.gz" not in str(caught.value)


def names(out: Path) -> list[str]:
    return list(times(out))


def test_files_of_another_model_do_not_stay_beside_new_labels(predict: Predict, out: Path) -> None:
    assert predict(probabilities=True, overlay=True) == {}
    (out / "a.txt").write_text("notes of the user")
    before = times(out)
    assert predict(seed=1, overlay=True, overwrite=True) == {}
    assert names(out) == ["a.nii.gz", "a.png", "a.txt", "b.nii.gz", "b.png"]
    assert times(out)["a.png"] > before["a.png"]
    assert predict(seed=0, overwrite=True) == {}
    assert names(out) == ["a.nii.gz", "a.txt", "b.nii.gz"]
    assert predict(probabilities=True) == {}
    assert names(out) == ["a.nii.gz", "a.npz", "a.txt", "b.nii.gz", "b.npz"]


def test_files_of_the_same_result_stay_and_go_with_it(predict: Predict, out: Path) -> None:
    assert predict(probabilities=True) == {}
    before = times(out)
    assert predict(overlay=True) == {}  # predicts again, for the overlays
    assert names(out) == ["a.nii.gz", "a.npz", "a.png", "b.nii.gz", "b.npz", "b.png"]
    assert times(out)["a.npz"] == before["a.npz"]
    full = times(out)
    assert predict(overlay=True, probabilities=True) == {} and times(out) == full
    assert predict(seed=1, overwrite=True) == {}
    assert names(out) == ["a.nii.gz", "b.nii.gz"]


def test_a_record_deletes_nothing_but_overlays_and_probabilities(predict: Predict, out: Path) -> None:
    assert predict() == {}
    (out / "a.txt").write_text("notes of the user")
    path = out / ".predicted" / "a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"more": [".txt", "/../a.txt", 1]}))
    assert predict(seed=1, overwrite=True) == {}
    assert names(out) == ["a.nii.gz", "a.txt", "b.nii.gz"]


def test_a_failed_case_keeps_all_of_its_earlier_result(
    predict: Predict, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predict(probabilities=True) == {}
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def fail(*args: Any, **more: Any) -> None:
        raise InputError("no memory")

    monkeypatch.setattr(predictor, "predict_case", fail)
    assert predict(seed=1, overwrite=True) == {"a": "no memory", "b": "no memory"}
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
