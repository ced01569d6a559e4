"""predict.py with a sweep folder: the average over folds, and the postprocessing chosen on validation cases."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.common.files import read_json, write_json
from e2enet.data.cases.splits import five_fold
from e2enet.data.formats.layout import Case
from e2enet.data.layouts.prediction import find_cases
from e2enet.evaluation.out_of_fold import main as score_out_of_fold
from e2enet.inference.checkpoint import LoadedModel, load_model
from e2enet.inference.config import PredictConfig
from e2enet.inference.largest_component import keep_largest
from e2enet.inference.predictor import WindowSettings, predict_case, predict_cases
from e2enet.inference.run import run_prediction
from e2enet.training.records import write_config

CASES = [f"scan_{index}" for index in range(5)]


@pytest.fixture
def sweep(tmp_path: Path, scan: nib.Nifti1Image, write_checkpoint: Callable[..., Path]) -> Path:
    """Five runs with random weights and their validation predictions.

    The reference of class 1 is the largest component of its prediction, that of class 2 is the prediction itself.
    So the choice is known: postprocessing improves class 1 and can only worsen class 2.
    """
    data, sweep = tmp_path / "data" / "Task99_Tiny", tmp_path / "sweep"
    random = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
    for case in CASES:
        noisy = scan.get_fdata(dtype=np.float32) + random.normal(0, 0.5, scan.shape).astype(np.float32)
        nib.save(nib.Nifti1Image(noisy, scan.affine, scan.header), data / "imagesTr" / f"{case}.nii.gz")
    for fold in range(5):
        run = sweep / f"fold{fold}"
        write_checkpoint(f"sweep/fold{fold}/checkpoints/best.ckpt", seed=fold)
        overrides = ["data=msd", "data.name=Task99_Tiny", f"paths.data={data.parent}", f"fold={fold}", "dsff=dense"]
        write_config(run / "config.yaml", compose_config([*overrides, f"run_folder={run}"]))
        (run / "summary.json").write_text("{}")
        (case,) = five_fold(CASES, fold)[1]
        image = data / "imagesTr" / f"{case}.nii.gz"
        predict_cases([load_model(run)], [Case(case, (image,))], run / "validation", WindowSettings())
        predicted = nib.load(run / "validation" / f"{case}.nii.gz")
        truth = keep_largest(np.asarray(predicted.dataobj), [1])
        nib.save(nib.Nifti1Image(truth, predicted.affine), data / "labelsTr" / f"{case}.nii.gz")
    names = {"0": "background", "1": "liver", "2": "spleen"}
    training = [{"image": f"imagesTr/{case}.nii.gz", "label": f"labelsTr/{case}.nii.gz"} for case in CASES]
    content = {"name": "tiny", "modality": {"0": "MRI0"}, "labels": names, "training": training, "test": []}
    (data / "dataset.json").write_text(json.dumps(content))
    return sweep


def settings(checkpoint: Path, sweep: Path, name: str, case: str = "scan_0", **changes: Any) -> PredictConfig:
    scan = sweep.parent / "data" / "Task99_Tiny" / "imagesTr" / f"{case}.nii.gz"
    return PredictConfig((checkpoint,), scan, sweep.parent / name, device="cpu", **changes)


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nib.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


def test_a_sweep_is_predicted_by_the_average_of_its_folds(sweep: Path) -> None:
    # `auto` may choose an engine that differs from torch in the last digit.
    config = settings(sweep, sweep, "out", probabilities=True, postprocessing="none", engine="dense")
    assert run_prediction(config) == {}
    (case,) = find_cases(config.input, ["MRI"], ".nii.gz")
    models = [load_model(sweep / f"fold{fold}") for fold in range(5)]

    def probabilities(chosen: list[LoadedModel]) -> np.ndarray:
        planes: list[np.ndarray] = []
        predict_case(chosen, case, WindowSettings(), on_plane=planes.append)
        return np.stack(planes, axis=1)

    together = probabilities(models)
    np.testing.assert_allclose(together, np.mean([probabilities([model]) for model in models], axis=0), atol=1e-5)
    with np.load(config.output / "scan_0.npz") as content:
        written = content["probabilities"]
    expected = np.sort(together.astype(np.float16), axis=None)
    np.testing.assert_array_equal(np.sort(written, axis=None), expected)


def test_predicting_with_the_stored_choice_gives_the_postprocessed_out_of_fold_images(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score_out_of_fold([str(sweep), "--postprocessing"])
    stored = sweep / "out_of_fold" / "seed0"
    assert read_json(stored / "postprocessing.json")["keep_largest"] == [1]
    expected = labels_in(stored / "postprocessed")
    assert len(expected) == 5
    capsys.readouterr()
    for fold in range(5):
        (case,) = five_fold(CASES, fold)[1]
        assert run_prediction(settings(sweep / f"fold{fold}", sweep, "out", case)) == {}
        assert "postprocessing: largest component of 1 liver" in capsys.readouterr().out
    predicted = labels_in(sweep.parent / "out")
    for name, labels in expected.items():
        np.testing.assert_array_equal(predicted[name], labels)


def test_a_choice_is_made_anew_for_other_weights(sweep: Path, write_checkpoint: Callable[..., Path]) -> None:
    score_out_of_fold([str(sweep), "--postprocessing"])
    path = sweep / "out_of_fold" / "seed0" / "postprocessing.json"
    before = read_json(path)["checkpoints"]
    write_checkpoint("sweep/fold1/checkpoints/best.ckpt", seed=9)
    config = settings(sweep / "fold1", sweep, "out")
    with pytest.raises(InputError, match=r"postprocessing\.json: was chosen by other weights") as caught:
        run_prediction(config)
    assert not config.output.exists()
    (command,) = re.findall(r"\((python .*)\)", str(caught.value))
    score_out_of_fold(shlex.split(command)[3:])
    after = read_json(path)["checkpoints"]
    assert [run for run in before if before[run] != after[run]] == ["fold1"] and len(after) == 5
    assert run_prediction(config) == {}


def test_the_choice_is_taken_for_the_folds_of_a_sweep_unless_told_not_to(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Only a fold whose prediction has small components is kept, so that postprocessing changes something.
    fold = next(fold for fold in range(5) if _loses_voxels(sweep / f"fold{fold}"))
    for other in set(range(5)) - {fold}:
        (sweep / f"fold{other}" / "summary.json").unlink()
    (case,) = five_fold(CASES, fold)[1]
    stored = sweep / "out_of_fold" / "seed0" / "postprocessing.json"
    classes = {"1": {"name": "liver"}, "2": {"name": "spleen"}}
    write_json(stored, {"keep_largest": [1], "classes": classes, "runs": [f"fold{index}" for index in range(5)]})

    def predict(name: str, **changes: Any) -> np.ndarray:
        config = settings(sweep, sweep, name, case, allow_missing_folds=True, **changes)
        assert run_prediction(config) == {}
        return labels_in(config.output)[f"{case}.nii.gz"]

    treated = predict("auto")
    assert f"postprocessing: largest component of 1 liver ({stored.resolve()})" in capsys.readouterr().out
    plain = predict("none", postprocessing="none")
    assert "postprocessing" not in capsys.readouterr().out
    assert (plain != treated).any()
    np.testing.assert_array_equal(treated, keep_largest(plain, [1]))
    stored.rename(sweep.parent / "choice.json")
    np.testing.assert_array_equal(predict("gone"), plain)
    np.testing.assert_array_equal(predict("named", postprocessing=str(sweep.parent / "choice.json")), treated)


def test_refusals_come_before_any_prediction(sweep: Path) -> None:
    (sweep / "fold2" / "summary.json").unlink()
    with pytest.raises(InputError, match=r"fold 2, seed 0: interrupted"):
        run_prediction(settings(sweep, sweep, "out"))
    with pytest.raises(InputError, match="choose runs of a sweep folder"):
        run_prediction(settings(sweep / "fold0", sweep, "out", row="s80"))
    with pytest.raises(InputError, match=r"nowhere\.json: no such file"):
        run_prediction(settings(sweep / "fold0", sweep, "out", postprocessing="nowhere.json"))
    other = sweep.parent / "other.json"
    other.write_text(json.dumps({"keep_largest": [], "classes": {"1": {"name": "heart"}}, "runs": []}))
    with pytest.raises(InputError, match=r"chosen for the classes \{1: 'heart'\}, the model has"):
        run_prediction(settings(sweep / "fold0", sweep, "out", postprocessing=str(other)))
    assert not (sweep.parent / "out").exists()


def test_missing_folds_may_be_left_out(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (sweep / "fold2" / "summary.json").unlink()
    assert run_prediction(settings(sweep, sweep, "out", allow_missing_folds=True)) == {}
    output = capsys.readouterr().out
    assert "warning: predicted without fold 2, seed 0: interrupted" in output and "4 models" in output


def _loses_voxels(run: Path) -> bool:
    (labels,) = labels_in(run / "validation").values()
    return bool((keep_largest(labels, [1]) != labels).any())
