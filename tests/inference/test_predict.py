"""From a scan to its files: native grid, storage order, ensembles, refusals, resuming, the command."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from e2enet.common.errors import InputError
from e2enet.data.layouts.prediction import find_cases
from e2enet.inference.checkpoint import load_ensemble, load_model
from e2enet.inference.config import PredictConfig
from e2enet.inference.predictor import WindowSettings, predict_case
from e2enet.inference.run import resolve_device, run_prediction
from e2enet.network.e2enet import E2ENet
from e2enet.network.engine import select_engine
from e2enet.view.predicted import view_predicted

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def scans(tmp_path: Path, scan: nib.Nifti1Image) -> Path:
    """Folder with the oblique scan as case a."""
    folder = tmp_path / "scans"
    folder.mkdir()
    nib.save(scan, folder / "a.nii.gz")
    return folder


def settings(checkpoint: Path, scans: Path, **changes) -> PredictConfig:
    return PredictConfig((checkpoint,), scans, scans.parent / "out", device="cpu", **changes)


def visible(folder: Path) -> list[str]:
    """Return the names of the files in a folder, without the hidden records of prediction."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_result_lies_on_the_scan(write_checkpoint, scans, scan):
    config = settings(write_checkpoint(), scans)
    assert run_prediction(config) == {}
    result = nib.load(config.output / "a.nii.gz")
    assert result.shape == scan.shape
    assert result.get_data_dtype() == np.uint8
    np.testing.assert_allclose(result.affine, scan.affine, atol=1e-5)
    assert result.header.get_xyzt_units() == ("mm", "sec")
    assert (int(result.header["qform_code"]), int(result.header["sform_code"])) == (1, 2)
    np.testing.assert_allclose(result.get_qform(), scan.get_qform(), atol=1e-5)
    values = np.unique(np.asarray(result.dataobj))
    assert len(values) > 1 and set(values) <= {0, 1, 2}
    assert visible(config.output) == ["a.nii.gz"]


@pytest.mark.parametrize(("unit", "scale"), [("meter", 1e-3), ("micron", 1e3)])
def test_a_scan_in_another_unit_is_the_same_scan(write_checkpoint, scans, scan, unit: str, scale: float) -> None:
    affine = scan.affine.copy()
    affine[:3] *= scale
    other = nib.Nifti1Image(np.asarray(scan.dataobj), affine)
    other.header.set_xyzt_units(unit)
    nib.save(other, scans / "b.nii.gz")
    config = settings(write_checkpoint(), scans)
    assert run_prediction(config) == {}
    expected, found = (nib.load(config.output / f"{name}.nii.gz") for name in "ab")
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_array_equal(found.affine, nib.load(scans / "b.nii.gz").affine)
    assert found.header.get_xyzt_units()[0] == unit


def test_odd_headers_are_told(write_checkpoint, scans, scan, capsys) -> None:
    scan.header.set_xyzt_units("micron")
    turn = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    scan.set_qform(turn @ scan.affine, code=1)
    nib.save(scan, scans / "b.nii.gz")
    config = settings(write_checkpoint(), scans)
    assert run_prediction(config).keys() <= {"b"}  # b may not fit in memory
    said = capsys.readouterr().out
    assert f"warning: case b: {scans}/b.nii.gz: voxels of 0.0009 x 0.0011 x 0.0028 mm (its header counts in" in said
    assert f"warning: case b: {scans}/b.nii.gz: sform and qform lead to places up to " in said
    assert "case a" not in said


def test_slices_across_another_axis_than_the_models_are_told(write_checkpoint, scans, scan, capsys) -> None:
    """The model's depth is the superior-inferior axis, with slices of about 3 mm."""
    coronal = scan.affine.copy()
    coronal[:3, :3] = np.diag([-1, -9, 2.8])
    image = nib.Nifti1Image(np.asarray(scan.dataobj), coronal)
    image.header.set_xyzt_units("mm")
    nib.save(image, scans / "b.nii.gz")
    assert run_prediction(settings(write_checkpoint(), scans)) == {}
    said = capsys.readouterr().out
    assert f"warning: case b: {scans}/b.nii.gz: slices of 9 mm across the anterior-posterior axis, those of" in said
    assert "across the superior-inferior axis: this scan is resampled within its slices" in said
    assert "case a" not in said


@pytest.mark.parametrize("engine", ["auto", "sparse"])
def test_engines_give_the_same(engine: str, write_checkpoint, scans) -> None:
    checkpoint = write_checkpoint()
    found = {}
    for name in ("dense", engine):
        config = replace(settings(checkpoint, scans, probabilities=True, engine=name), output=scans.parent / name)
        assert run_prediction(config) == {}
        with np.load(config.output / "a.npz") as content:
            found[name] = content["probabilities"].astype(np.float32)
    np.testing.assert_allclose(found[engine], found["dense"], atol=1e-3)  # stored in float16
    assert found["dense"].std() > 0.01


def test_the_sparse_engine_says_what_it_cannot_run() -> None:
    network = torch.nn.Identity()
    with pytest.raises(InputError, match="engine=sparse: Identity is no E2ENet"):
        select_engine(network, "sparse", device=torch.device("cpu"), patch_size=(4, 8, 8))
    assert select_engine(network, "auto", device=torch.device("cpu"), patch_size=(4, 8, 8)) is network
    sparse = E2ENet(1, 2, [(2, 2, 2)], base_features=2)
    with pytest.raises(InputError, match=r"sparse: on cuda, only groups .* on a CPU; expected engine=auto or dense"):
        select_engine(sparse, "sparse", device=torch.device("cuda"), patch_size=(4, 8, 8))
    deep = E2ENet(1, 2, [(5, 2, 2)], base_features=2)
    with pytest.raises(InputError, match="larger along the depth than 4"):
        select_engine(deep, "sparse", device=torch.device("cpu"), patch_size=(10, 8, 8))


def test_mistakes_are_told_before_an_engine_is_measured(write_checkpoint, scans, monkeypatch) -> None:
    measured: list[str] = []

    def measure(network: torch.nn.Module, engine: str, **_: object) -> torch.nn.Module:
        measured.append(engine)
        return network

    monkeypatch.setattr("e2enet.inference.run.select_engine", measure)
    config = settings(write_checkpoint(), scans)
    mistakes = {"input": scans / "elsewhere", "postprocessing": str(scans / "none.json"), "precision": "16"}
    for key, value in mistakes.items():
        with pytest.raises(InputError):
            run_prediction(replace(config, **{key: value}))
    assert measured == []
    assert run_prediction(config) == {} and measured == ["auto"]


@pytest.mark.parametrize("axes", ["RAS", "PSL", "SRA", "IAR", "AIL"])
def test_storage_order_does_not_matter(write_checkpoint, scans, scan, axes):
    other = scan.as_reoriented(ornt_transform(io_orientation(scan.affine), axcodes2ornt(axes)))
    assert nib.aff2axcodes(other.affine) == tuple(axes)
    nib.save(other, scans / "b.nii.gz")
    config = settings(write_checkpoint(), scans, probabilities=True)
    assert run_prediction(config) == {}
    a, b = (nib.load(config.output / f"{name}.nii.gz") for name in "ab")
    np.testing.assert_allclose(b.affine, other.affine, atol=1e-5)
    a_ras, b_ras = nib.as_closest_canonical(a), nib.as_closest_canonical(b)
    np.testing.assert_allclose(a_ras.affine, b_ras.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(a_ras.dataobj), np.asarray(b_ras.dataobj))
    assert len(np.unique(np.asarray(a.dataobj))) > 1


def test_probabilities_and_overlay(write_checkpoint, scans, scan):
    config = settings(write_checkpoint(), scans, probabilities=True, overlay=True)
    assert run_prediction(config) == {}
    assert visible(config.output) == ["a.nii.gz", "a.npz", "a.png"]
    with np.load(config.output / "a.npz") as content:
        probabilities = content["probabilities"]
    assert probabilities.dtype == np.float16
    assert probabilities.shape == (3, *scan.shape)
    np.testing.assert_allclose(probabilities.astype(np.float32).sum(0), 1, atol=2e-3)
    labels = np.asarray(nib.load(config.output / "a.nii.gz").dataobj)
    chosen = np.take_along_axis(probabilities, labels[None].astype(int), axis=0)[0]
    assert (chosen >= probabilities.max(axis=0) - 1e-3).all()
    assert (config.output / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_viewer_shows_what_was_predicted(write_checkpoint, scans):
    (scans / "b.nii.gz").write_bytes(b"no image")
    config = settings(write_checkpoint(), scans, probabilities=True)
    assert list(run_prediction(config, view_predicted)) == ["b"]
    viewer = config.output / "viewer"
    content = json.loads((viewer / "list.js").read_text().splitlines()[1].removeprefix("e2enet.list(")[:-2])
    (line,) = content["cases"]  # the failed case is left out
    assert line["case"] == "a" and line["panes"][0]["probabilities"] and not line["reference"]
    assert [label["name"] for label in content["meanings"][0]["labels"]] == ["liver", "spleen"]
    shown = json.loads((viewer / "cases" / "0.js").read_text().removeprefix("e2enet.case(0, ")[:-3])
    image = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(shown["panes"][0]["prediction"])))
    expected = nib.as_closest_canonical(nib.load(config.output / "a.nii.gz"))
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-4)


def test_labels_do_not_depend_on_asking_for_probabilities(write_checkpoint, scans):
    model, (case,) = load_model(write_checkpoint()), find_cases(scans, ["MRI"], ".nii.gz")
    plain = predict_case([model], case, WindowSettings())
    planes: list[np.ndarray] = []
    full = predict_case([model], case, WindowSettings(), on_plane=planes.append)
    np.testing.assert_array_equal(plain.labels, full.labels)
    np.testing.assert_array_equal(np.stack(planes, axis=1).argmax(axis=0), full.labels)


def test_ensemble_averages_probabilities_and_mirror_changes_them(write_checkpoint, scans):
    models = load_ensemble([write_checkpoint("a.ckpt", seed=1), write_checkpoint("b.ckpt", seed=2)])
    (case,) = find_cases(scans, ["MRI"], ".nii.gz")

    def probabilities(chosen, **changes):
        planes: list[np.ndarray] = []
        predict_case(chosen, case, WindowSettings(**changes), on_plane=planes.append)
        return np.stack(planes, axis=1)

    apart = [probabilities([model]) for model in models]
    np.testing.assert_allclose(probabilities(models), (apart[0] + apart[1]) / 2, atol=1e-5)
    assert np.abs(probabilities(models[:1], mirror=False) - apart[0]).max() > 1e-3
    np.testing.assert_allclose(probabilities(models[:1], batch_size=3), apart[0], atol=1e-5)
    np.testing.assert_allclose(probabilities(models[:1], amp_dtype=torch.bfloat16), apart[0], atol=0.1)


def test_bad_case_does_not_stop_the_others(write_checkpoint, scans, scan):
    (scans / "b.nii.gz").write_bytes(b"no image")
    nib.save(nib.Nifti1Image(np.stack([scan.get_fdata()] * 2, axis=3), scan.affine), scans / "c.nii.gz")
    nib.save(scan, scans / "d.nii.gz")
    config = settings(write_checkpoint(), scans)
    failures = run_prediction(config)
    assert list(failures) == ["b", "c"]
    assert "b.nii.gz" in failures["b"]
    assert "c.nii.gz: 2 channel(s), 1 expected: the model was trained on MRI0" in failures["c"]
    assert visible(config.output) == ["a.nii.gz", "d.nii.gz"]


def test_modalities_come_from_several_files_or_one_of_4d(write_checkpoint, scans, scan):
    checkpoint = write_checkpoint(num_channels=2)
    second = nib.Nifti1Image(scan.get_fdata(dtype=np.float32)[::-1].copy(), scan.affine)
    (scans / "a.nii.gz").unlink()
    nib.save(scan, scans / "x_0000.nii.gz")
    nib.save(second, scans / "x_0001.nii.gz")
    both = np.stack([scan.get_fdata(dtype=np.float32), second.get_fdata(dtype=np.float32)], axis=3)
    nib.save(nib.Nifti1Image(both, scan.affine), scans / "y.nii.gz")
    config = settings(checkpoint, scans)
    assert run_prediction(config) == {}
    x, y = (nib.load(config.output / f"{name}.nii.gz") for name in "xy")
    assert x.shape == y.shape == scan.shape
    np.testing.assert_array_equal(np.asarray(x.dataobj), np.asarray(y.dataobj))


def test_scans_are_never_overwritten(write_checkpoint, scans):
    before = (scans / "a.nii.gz").read_bytes()
    config = PredictConfig((write_checkpoint(),), scans, scans, device="cpu", overwrite=True)
    with pytest.raises(InputError, match="would replace the scans"):
        run_prediction(config)
    assert (scans / "a.nii.gz").read_bytes() == before


def test_unusable_device_precision_and_output(write_checkpoint, scans):
    checkpoint = write_checkpoint()
    with pytest.raises(InputError, match="float16 needs a GPU"):
        run_prediction(settings(checkpoint, scans, precision="16"))
    with pytest.raises(InputError, match="is a file, expected a folder"):
        run_prediction(PredictConfig((checkpoint,), scans, checkpoint, device="cpu"))
    with pytest.raises(InputError, match="expected auto, cpu or one of them"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def run_command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "predict.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_command(write_checkpoint, scans, tmp_path):
    (scans / "b.nii.gz").write_bytes(b"no image")
    folder = tmp_path / "work"
    folder.mkdir()
    write_checkpoint("run/checkpoints/best.ckpt")
    given = [f"checkpoint={tmp_path / 'run'}", f"input={scans}", f"output={tmp_path / 'out'}", "device=cpu"]
    finished = run_command(*given, folder=folder)
    assert finished.returncode == 1, finished.stderr
    assert "1 of 2 cases failed" in finished.stdout
    assert "Traceback" not in finished.stdout + finished.stderr
    assert visible(tmp_path / "out") == ["a.nii.gz"]
    assert list(folder.iterdir()) == []
    (scans / "b.nii.gz").unlink()
    assert run_command(*given, "viewer=true", folder=folder).returncode == 0
    assert (tmp_path / "out" / "viewer" / "index.html").is_file()
    (tmp_path / "out" / "viewer" / "list.js").unlink()  # anything but a viewer: told before anything is predicted
    refused = run_command(*given, "viewer=true", "overwrite=true", folder=folder)
    expected = "viewer: is there and not empty; a new or empty folder, or an earlier viewer, expected"
    assert refused.returncode == 2 and expected in refused.stderr


def test_command_lists_every_mistake(tmp_path):
    finished = run_command("overlap=0.5", "step=7", "input=x", folder=tmp_path)
    assert finished.returncode == 2
    for expected in (
        "overlap: no such key",
        "step=7: expected",
        "checkpoint: not given",
        "output: not given",
    ):
        assert expected in finished.stderr
    assert "Traceback" not in finished.stderr
    wrong_value = run_command("checkpoint=x", "input=x", "output=x", "step=7", folder=tmp_path)
    assert (wrong_value.returncode, "step=7: expected" in wrong_value.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []
