"""ONNX: logits at any size and batch, a graph of standard operations, and a script that predicts without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion

from e2enet.common.files import write_json
from e2enet.data.formats.listing import RESULT_ENDINGS
from e2enet.inference.checkpoint import LoadedModel, load_model, read_hyper_parameters
from e2enet.inference.largest_component import classes_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
onnxscript = pytest.importorskip("onnxscript")
from e2enet.export import onnx_model  # noqa: E402
from e2enet.export.__main__ import main  # noqa: E402

TRAINED = Path(__file__).parents[1] / "integration" / "earlier_run"
# Runs a script in an interpreter that has neither torch nor this package.
REFUSE = """
import importlib.abc, runpy, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "e2enet", "monai", "nibabel", "scipy"):
            raise ImportError(f"{name} is refused")
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1].rpartition("/")[0])  # as for `python SCRIPT`
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[LoadedModel, Path], None]:
    """Return `export_onnx`, which takes seconds, with a memory of networks that it has exported."""
    folder, known, export_onnx = tmp_path_factory.mktemp("exported"), list[Any](), onnx_model.export_onnx

    def remembered(model: LoadedModel, path: Path) -> None:
        state = model.network.state_dict()
        key = (read_hyper_parameters(model.path)["network"], [value.tolist() for value in state.values()])
        if key in known:
            shutil.copyfile(folder / str(known.index(key)), path)
            return
        export_onnx(model, path)
        shutil.copyfile(path, folder / str(len(known)))
        known.append(key)

    return remembered


@pytest.fixture(autouse=True)
def _remember(exported: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_model, "export_onnx", exported)


def session_of(folder: Path) -> Any:
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


def export(run: Path, output: Path) -> Path:
    main([str(run), "--to", "onnx", "--output", str(output)])
    return output


def test_logits_at_several_sizes_and_batches(make_run, tmp_path: Path) -> None:
    run = make_run("two_channels", network={"shift_size": 5, "shift_input": True})
    session = session_of(export(run, tmp_path / "onnx"))
    network = load_model(run).network
    generator = torch.Generator().manual_seed(0)
    for shape in [(1, 2, 8, 16, 16), (3, 2, 4, 8, 8), (2, 2, 10, 12, 36), (1, 2, 24, 48, 40)]:
        image = torch.randn(shape, generator=generator)
        with torch.no_grad():
            expected = network(image).numpy()
        (found,) = session.run(None, {"image": image.numpy()})
        assert found.dtype == np.float32 and found.shape == expected.shape and expected.std() > 0.5
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_a_trained_network_on_a_large_volume(tmp_path: Path) -> None:
    """A runtime sums in float32: an instance norm in one go loses 2e-4 to 6e-4 here."""
    session = session_of(export(TRAINED, tmp_path / "onnx"))
    network = load_model(TRAINED).network
    coarse = torch.randn(1, 1, 16, 24, 24, generator=torch.Generator().manual_seed(0)) * 2
    image = torch.nn.functional.interpolate(coarse, size=(64, 96, 96), mode="trilinear")
    with torch.no_grad():
        expected = network(image).numpy()
    (found,) = session.run(None, {"image": image.numpy()})
    assert np.abs(expected).max() > 5
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_the_graph_is_of_standard_operations(make_run, tmp_path: Path) -> None:
    folder = export(make_run(), tmp_path / "onnx")
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.onnx", "predict.py", "scan_grid.py"]
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model)
    assert [(domain.domain, domain.version) for domain in model.opset_import] == [("", 18)]
    assert model.ir_version == 8  # of the same time; onnxruntime 1.17 refuses that of torch's exporter
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    kinds = [node.op_type for node in model.graph.node]
    network = load_model(tmp_path / "run").network
    convolutions = [module for module in network.modules() if isinstance(module, torch.nn.Conv3d)]
    used = len(convolutions) - (len(network.heads) - 1)  # prediction reads one head
    assert kinds.count("Conv") == used and kinds.count("ConvTranspose") == 3 and kinds.count("MaxPool") == 1
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("image", "logits")
    axes = [axis.dim_param or axis.dim_value for axis in image.type.tensor_type.shape.dim]
    assert axes[1] == 1 and all(isinstance(axis, str) for axis in [axes[0], *axes[2:]])


def test_the_description_says_how_to_prepare_a_scan(make_run, tmp_path: Path) -> None:
    run = make_run("regions")
    content = json.loads((export(run, tmp_path / "onnx") / "model.json").read_text())
    model = load_model(run)
    assert content["plan"] == model.plan.to_dict() and content["size_steps"] == [2, 4, 4]
    assert content["labels"] == {"0": "background", "1": "liver", "2": "spleen", "3": "kidney"}
    assert content["regions"] == {"whole": [1, 2, 3], "core": [2, 3], "inner": [3]}
    assert content["regions_class_order"] == [1, 2, 3] and content["channels"] == ["MRI0"]
    assert content["spacing_unit"] is None and content["file_axes"] is False
    assert (content["mirror_axes"], content["step"], content["keep_largest"]) == ([0, 2], 0.5, [])


def write_postprocessing(run: Path) -> None:
    """Store that of classes 1 and 3 only the largest component is kept, as e2enet.evaluation.out_of_fold does."""
    labels = classes_of(load_model(run).scheme)
    content = {"keep_largest": [1, 3], "runs": ["."], "classes": {str(one): {"name": n} for one, n in labels.items()}}
    write_json(run / "out_of_fold" / "all" / "postprocessing.json", content)


def rewrite_headers(folder: Path, kind: str) -> None:
    """Name a wrong unit in the headers of scans, or leave out their orientation."""
    for path in folder.iterdir():
        image = nib.load(path)
        values = np.asarray(image.dataobj)
        if kind == "wrong_unit":
            image.header.set_xyzt_units("micron")
        else:
            image.header["sform_code"] = image.header["qform_code"] = 0
        nib.save(nib.Nifti1Image(values, image.affine if kind == "wrong_unit" else None, image.header), path)


KINDS = ["classes", "coarse", "ct", "two_channels", "regions", "file_axes", "largest", "wrong_unit", "no_orientation"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_script_predicts_the_labels_of_predict(kind: str, make_run, scans, predicted, tmp_path: Path) -> None:
    plain = kind in ("largest", "wrong_unit", "no_orientation")
    run = make_run("classes" if plain else kind, **{"dataset": {"spacing_unit": "mm"}} if kind == "wrong_unit" else {})
    folder = scans(2 if kind == "two_channels" else 1)
    if kind == "largest":
        write_postprocessing(run)
    elif plain:
        rewrite_headers(folder, kind)
    script = export(run, tmp_path / "onnx") / "predict.py"
    for case, expected in predicted(run, folder).items():
        files = sorted(map(str, folder.glob(f"{case}*")))
        output = tmp_path / f"{case}.nii.gz"
        program = [sys.executable, "-c", REFUSE, str(script), *files, str(output)]
        done = subprocess.run(program, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"}, check=False)
        assert done.returncode == 0, done.stderr
        found = nib.load(output)
        differing = np.count_nonzero(np.asarray(found.dataobj) != np.asarray(expected.dataobj))
        assert found.shape == expected.shape and found.get_data_dtype() == np.uint8
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
        # Two runtimes round differently: voxels whose two best classes are equal but for that may fall either way.
        assert differing <= 2, f"{case}: {differing} voxels"


def test_the_script_is_short_and_imports_three_packages(make_run, tmp_path: Path) -> None:
    folder = export(make_run(), tmp_path / "onnx")
    lines = [line for line in (folder / "predict.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 40
    imports = {
        line.split()[1]
        for name in ("predict.py", "scan_grid.py")
        for line in (folder / name).open()
        if line.startswith(("import ", "from "))
    }
    standard = {"collections.abc", "itertools", "json", "pathlib", "sys", "typing"}
    assert imports - standard == {"numpy", "onnxruntime", "SimpleITK", "scan_grid"}


def test_a_wrong_number_of_channels_is_told(make_run, scans, tmp_path: Path) -> None:
    script = export(make_run("two_channels"), tmp_path / "onnx") / "predict.py"
    scan = scans() / "oblique.nii.gz"
    program = [sys.executable, str(script), str(scan), str(tmp_path / "out.nii.gz")]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "1 channels, 2 expected: ['MRI0', 'MRI1']" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out.nii.gz").exists()
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "python predict.py SCAN [SCAN ..] LABELS" in done.stderr


def test_a_scan_is_never_written_over(make_run, scans, tmp_path: Path) -> None:
    """Whoever forgets the last argument names a scan in its place."""
    script, scan = export(make_run(), tmp_path / "onnx") / "predict.py", scans() / "oblique.nii.gz"
    (tmp_path / "text.nii.gz").write_text("no scan")
    before = scan.read_bytes()
    for files, message in (
        ([scan, scan], f"{scan}: a new file in a folder that exists expected"),
        (
            [scan, tmp_path / "no" / "out.nii.gz"],
            f"{tmp_path}/no/out.nii.gz: a new file in a folder that exists expected",
        ),
        (
            [scan, tmp_path / "out.nii.gx"],
            "out.nii.gx: a new file in a folder that exists expected, its name ",
        ),
        ([tmp_path / "gone.nii.gz", tmp_path / "out.nii.gz"], "gone.nii.gz: cannot be read: "),
        ([tmp_path / "text.nii.gz", tmp_path / "out.nii.gz"], "text.nii.gz: cannot be read: "),
    ):
        program = [sys.executable, str(script), *map(str, files)]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert scan.read_bytes() == before and not list(tmp_path.glob("out.nii.g*"))
    assert f"ENDINGS = {RESULT_ENDINGS}".replace("'", '"') in script.read_text()


def test_postprocessing_of_other_classes_is_refused(make_run, tmp_path: Path) -> None:
    run = make_run()
    write_postprocessing(run)
    path = run / "out_of_fold" / "all" / "postprocessing.json"
    write_json(path, {**json.loads(path.read_text()), "classes": {"1": {"name": "heart"}, "3": {"name": "kidney"}}})
    with pytest.raises(SystemExit):
        export(run, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
    shutil.rmtree(run / "out_of_fold")
    assert export(run, tmp_path / "onnx").is_dir()


def test_errors_name_the_file(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        export(tmp_path / "no_run", tmp_path / "onnx")
    assert stop.value.code == 2 and f"{tmp_path}/no_run: no such checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "onnx").exists()


def test_versions_that_do_not_fit_are_refused(make_run, tmp_path: Path, monkeypatch, capsys) -> None:
    run = make_run()
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cpu"))
    monkeypatch.setattr(onnxscript, "__version__", "0.7.2")
    with pytest.raises(SystemExit) as stop:
        export(run, tmp_path / "onnx")
    told = "torch 2.6.0+cpu writes no ONNX with onnxscript 0.7.2; torch 2.7 or later expected, or: pip install"
    assert stop.value.code == 2 and told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "onnx").exists()
