"""MONAI bundles: MONAI runs them, and writes the labels of `e2enet predict` voxel for voxel."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, load, load_bundle_config, verify_net_in_out
from monai.bundle import run as run_bundle
from monai.inferers import SlidingWindowInferer
from monai.transforms import EnsureChannelFirstd, LoadImaged

from e2enet.common.configs import ROOT
from e2enet.common.errors import InputError
from e2enet.common.files import write_json
from e2enet.data.formats.volume import read_volume
from e2enet.data.planning.plan import Plan
from e2enet.data.preparation.preprocess import preprocess
from e2enet.export.__main__ import main
from e2enet.export.bundle import write_bundle
from e2enet.export.bundle_parts import PreprocessScand, RestoreLabelsd, WindowProbabilities
from e2enet.export.bundle_texts import LICENCE
from e2enet.inference.checkpoint import load_model
from e2enet.inference.largest_component import classes_of
from e2enet.inference.sliding_window import predict_probabilities
from e2enet.training.compact import write_compact
from tests.export.conftest import LABELS

pytest.importorskip("ignite")
KINDS = ["classes", "coarse", "ct", "two_channels", "regions", "file_axes"]
PLAN = {
    "depth_axis": 2,
    "spacing": [2.5, 1.2, 1.0],
    "patch_size": [8, 16, 16],
    "strides": [[1, 2, 2], [2, 2, 2]],
    "batch_size": 2,
    "normalisation": [{"scheme": "none"}],
    "median_shape": [11, 31, 33],
}


def export(run: Path, output: Path) -> Path:
    main([str(run), "--to", "bundle", "--output", str(output)])
    return output


def assert_labels(output: Path, expected: dict[str, nib.Nifti1Image]) -> None:
    assert sorted(path.name for path in output.iterdir()) == sorted(f"{case}.nii.gz" for case in expected)
    for case, image in expected.items():
        found = nib.load(output / f"{case}.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(image.dataobj))
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
        assert found.get_data_dtype() == np.uint8


@pytest.mark.parametrize("kind", KINDS)
def test_monai_writes_the_labels_of_predict(kind: str, make_run, scans, predicted, tmp_path: Path) -> None:
    run, folder = make_run(kind), scans(2 if kind == "two_channels" else 1)
    bundle, output = export(run, tmp_path / "bundle"), tmp_path / "labels"
    config = str(bundle / "configs" / "inference.json")
    run_bundle(config_file=config, bundle_root=str(bundle), dataset_dir=str(folder), output_dir=str(output))
    assert_labels(output, predicted(run, folder))


@pytest.mark.parametrize(
    ("kind", "depth_axis", "axis", "order"),
    [
        ("classes", 2, "the superior-inferior axis", "RAS order"),
        ("classes", 0, "the right-left axis", "RAS order"),
        ("file_axes", 0, "axis 0 of the file", "the order of the file"),
    ],
)
def test_the_readme_names_the_axes(kind: str, depth_axis: int, axis: str, order: str, make_run, tmp_path: Path) -> None:
    """Axes of a model that nnU-Net trained keep the directions of the file: they have no anatomical names."""
    bundle = export(make_run(kind, depth_axis=depth_axis), tmp_path / "bundle")
    text = " ".join((bundle / "docs" / "README.md").read_text().split())
    assert f"Both name {axis} first, along which the slices lie, then the other two in {order}." in text
    assert (bundle / "LICENSE").read_text() == LICENCE


def test_the_documented_command_runs_it(make_run, scans, predicted, tmp_path: Path) -> None:
    pytest.importorskip("fire")
    run, folder = make_run(), scans()
    # Of the classes 1 and 3 only the largest component is kept, as e2enet.evaluation.out_of_fold found for the run.
    labels = {str(one): {"name": name} for one, name in classes_of(load_model(run).scheme).items()}
    write_json(
        run / "out_of_fold" / "all" / "postprocessing.json", {"keep_largest": [1, 3], "runs": ["."], "classes": labels}
    )
    bundle, output = export(run, tmp_path / "bundle"), tmp_path / "labels"
    program = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    program += ["--bundle_root", ".", "--dataset_dir", str(folder), "--output_dir", str(output)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, cwd=bundle, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = predicted(run, folder)
    assert_labels(output, kept)
    voxels = {case: np.asarray(image.dataobj) for case, image in kept.items()}
    whole = predicted(run, folder, postprocessing="none", overwrite=True)
    assert all((np.asarray(image.dataobj) != voxels[case]).any() for case, image in whole.items())


@pytest.mark.parametrize("kind", ["classes", "regions"])
def test_probabilities_are_those_of_predict_but_for_rounding(kind: str, make_run, tmp_path: Path) -> None:
    run = make_run(kind)
    bundle, model = export(run, tmp_path / "bundle"), load_model(run)
    image = torch.randn(1, 13, 21, 12, generator=torch.Generator().manual_seed(0))  # one axis is shorter than a window
    plan = model.plan
    options = {"mirror_axes": model.mirror_axes, "sigmoid": bool(model.scheme.regions)}
    expected = predict_probabilities([model.network], image, plan.patch_size, **options)
    parser = load_bundle_config(str(bundle), "inference.json")
    parser["device"] = "cpu"
    network, inferer = parser.get_parsed_content("network_def").eval(), parser.get_parsed_content("inferer")
    assert isinstance(network, WindowProbabilities) and isinstance(inferer, SlidingWindowInferer)
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    with torch.no_grad():
        found = inferer(image[None], network)[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert expected.std() > 0.05


def test_monais_own_checks(make_run, scans, tmp_path: Path, monkeypatch) -> None:
    bundle = export(make_run("two_channels"), tmp_path / "bundle")
    monkeypatch.chdir(bundle)
    files = {"config_file": "configs/inference.json", "meta_file": "configs/metadata.json"}
    verify_net_in_out("network_def", device="cpu", **files)
    workflow = ConfigWorkflow(**files, workflow_type="infer", logging_file=False, dataset_dir=str(scans(2)))
    workflow.initialize()
    assert workflow.check_properties() == []
    # Before MONAI 1.5 it returns the weights unless told so.
    old = {"return_state_dict": False} if "return_state_dict" in inspect.signature(load).parameters else {}
    network = load("bundle", bundle_dir=tmp_path, workflow_type="inference", source="github", device="cpu", **old)
    assert isinstance(network, WindowProbabilities)
    expected = load_model(tmp_path / "run").network.state_dict()
    assert all(
        torch.equal(value, expected[name.removeprefix("network.")]) for name, value in network.state_dict().items()
    )


def test_a_compact_checkpoint_gives_the_same_bundle(make_run, tmp_path: Path) -> None:
    run = make_run()
    compact = write_compact(run / "checkpoints" / "best.ckpt")
    first, second = (export(path, tmp_path / name) for name, path in (("best", run), ("compact", compact)))
    weights = [torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys() and any(name.endswith("kernel_mask") for name in weights[0])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    for name in ("inference.json", "metadata.json"):
        assert (first / "configs" / name).read_text() == (second / "configs" / name).read_text()


def test_the_files_of_the_specification(make_run, tmp_path: Path) -> None:
    bundle = export(make_run("two_channels"), tmp_path / "bundle")
    files = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    assert files == [
        *("LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.pt"),
    ]
    content = json.loads((bundle / "configs" / "metadata.json").read_text())
    required = {
        *("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task"),
        *("description", "authors", "copyright", "network_data_format"),
    }
    assert required <= content.keys()
    image, pred = content["network_data_format"]["inputs"]["image"], content["network_data_format"]["outputs"]["pred"]
    assert (image["num_channels"], image["spatial_shape"], pred["num_channels"]) == (2, [8, 16, 16], 4)
    assert image["channel_def"] == {"0": "MRI0", "1": "MRI1"}
    assert pred["channel_def"] == {"0": "background", "1": "liver", "2": "spleen", "3": "kidney"}
    readme = (bundle / "docs" / "README.md").read_text()
    assert 'pip install "e2enet[train]"' in readme and "| 3 | kidney |" in readme and "MRI0, MRI1" in readme


def test_images_that_monai_loads_are_prepared_the_same(scans) -> None:
    for scan in sorted(scans().iterdir()):
        load_and_prepare = [LoadImaged("image"), EnsureChannelFirstd("image"), PreprocessScand("image", PLAN)]
        data: Any = {"image": str(scan)}
        for transform in load_and_prepare:
            data = transform(data)
        by_path = PreprocessScand("image", PLAN)({"image": str(scan)})
        torch.testing.assert_close(data["image"].as_tensor(), by_path["image"].as_tensor(), rtol=0, atol=0)
        torch.testing.assert_close(data["image"].affine, by_path["image"].affine, atol=1e-4, rtol=0)
        expected = preprocess(read_volume([scan], 2), Plan.from_dict(PLAN))
        np.testing.assert_array_equal(by_path["image"].numpy(), expected.image)


@pytest.mark.parametrize("file_axes", [False, True])
def test_affines_lead_to_where_the_voxels_lie(file_axes: bool, scans) -> None:
    """A scan whose value is the position along an axis in mm: after resampling, each voxel still names its place."""
    scan = nib.load(scans() / "oblique.nii.gz")
    stored = scan.affine @ np.diag([0.6, 1, 1, 1])  # slices of 2 mm: of coarser ones the nearest would be taken
    for axis in range(3):
        index = np.stack(np.meshgrid(*map(np.arange, scan.shape), indexing="ij"), -1)
        place = (index @ stored[:3, :3].T + stored[:3, 3])[..., axis].astype(np.float32)
        path = Path(scan.get_filename()).with_name("place.nii.gz")
        nib.save(nib.Nifti1Image(place, stored), path)
        prepared = PreprocessScand("image", PLAN, file_axes=file_axes)({"image": path})["image"]
        grid = np.stack(np.meshgrid(*map(np.arange, prepared.shape[1:]), indexing="ij"), -1)
        affine = prepared.affine.numpy()
        found = (grid @ affine[:3, :3].T + affine[:3, 3])[..., axis]
        inner = tuple(slice(size // 3, -(size // 3)) for size in found.shape)  # splines bend a ramp at its ends
        np.testing.assert_allclose(found[inner], prepared.numpy()[0][inner], atol=0.2)


def test_restoring_is_the_way_back(scans) -> None:
    """Labels that are certain on the network's grid are those of the scan where no boundary is near."""
    plan = {**PLAN, "spacing": [3.4, 0.8, 0.9]}  # the scan's own: nothing is interpolated
    scan = nib.load(scans() / "oblique.nii.gz")
    path = Path(scan.get_filename()).with_name("labels.nii.gz")
    labels = np.random.default_rng(0).integers(0, 4, size=scan.shape).astype(np.float32)
    labels[:, :, :2], labels[0] = 0, 0  # cropped
    nib.save(nib.Nifti1Image(labels, scan.affine), path)
    data = PreprocessScand("pred", plan)({"pred": str(path)})
    one_hot = torch.nn.functional.one_hot(data["pred"].as_tensor()[0].long(), 4).movedim(-1, 0).float()
    restored = RestoreLabelsd("pred", plan)({"pred": type(data["pred"])(one_hot, meta=data["pred"].meta)})["pred"]
    assert restored.dtype == torch.uint8 and restored.meta["filename_or_obj"] == str(path)
    np.testing.assert_array_equal(restored.numpy()[0], labels)
    np.testing.assert_allclose(restored.affine.numpy(), nib.load(path).affine, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": ["$__import__('os').abort()"]}, r"channels is \"\$__import__\('os'\)"),
        ({"channels": ["%/etc/config.json"]}, "text without .* expected"),
        ({"spacing_unit": "$1 / 0"}, r"spacing_unit is '\$1 / 0'"),
        ({"labels": {**LABELS, 1: "@run"}}, "labels: 1 is '@run'"),
        ({"layout": {"_target_": "mine.Layout", "root": {"_target_": "os.abort"}}}, "root holds _target_='os.abort'"),
    ],
)
def test_text_that_monai_would_run_is_refused(changes: dict[str, Any], message: str, make_run, tmp_path: Path) -> None:
    """Reading a checkpoint runs nothing of it; its bundle must not either."""
    model = load_model(make_run(dataset=changes))
    with pytest.raises(InputError, match=f"best.ckpt: .*{message}"):
        write_bundle(model, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_mistakes_are_named(tmp_path: Path, scans) -> None:
    scan = str(scans() / "oblique.nii.gz")
    with pytest.raises(InputError, match="unit=km: one of m, mm, um or null expected"):
        PreprocessScand("image", PLAN, unit="km")
    two = {**PLAN, "normalisation": [{"scheme": "none"}] * 2}
    with pytest.raises(InputError, match=rf"{scan}: the image has 1 channels, the plan 2"):
        PreprocessScand("image", two)({"image": scan})
    with pytest.raises(InputError, match="is no plan"):
        RestoreLabelsd("pred", {"spacing": [1, 1, 1]})
    flat = LoadImaged("image")({"image": scan})
    with pytest.raises(InputError, match=r"\(C, X, Y, Z\) expected, as EnsureChannelFirstd gives"):
        PreprocessScand("image", PLAN)(flat)
