"""Prepared cases of a small dataset and of real scans."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from e2enet.common.errors import InputError
from e2enet.data.formats.layout import RawDataset, read_msd
from e2enet.data.formats.scheme import LabelScheme
from e2enet.data.formats.volume import read_label, read_volume, to_native
from e2enet.data.planning.plan import Plan
from e2enet.data.planning.plan_file import plan_dataset
from e2enet.data.preparation.cases import prepare_cases
from e2enet.data.preparation.preprocess import preprocess
from e2enet.data.preparation.restore import restore_labels
from e2enet.data.preparation.store import plan_key

SHAPE = (12, 14, 6)


def load(path: Path) -> Any:
    """nibabel declares a base class without voxels."""
    return nib.load(path)


def write_dataset(folder: Path, *, channel: str = "MRI", cases: int = 3, depth_mm: float = 3.0) -> RawDataset:
    """Write cases with a zero margin of one voxel. Class 1 has intensity 10 * (case + 1); only case 0 has class 2."""
    rng = np.random.default_rng(0)
    training = []
    for number in range(cases):
        label = np.zeros(SHAPE, dtype=np.uint8)
        label[3:8, 3:9, 1:4] = 1
        if number == 0:
            label[9, 9, 4] = 2
        image = rng.uniform(1, 2, SHAPE).astype(np.float32)
        image[label == 1] = 10 * (number + 1)
        image[0], image[-1], image[:, 0], image[:, -1], image[..., 0], image[..., -1] = (0,) * 6
        for kind, data in (("images", image), ("labels", label)):
            path = folder / f"{kind}Tr/case_{number}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(data, np.diag((-1.0, -1.0, depth_mm, 1.0))), path)
        files = {"image": f"imagesTr/case_{number}.nii.gz", "label": f"labelsTr/case_{number}.nii.gz"}
        training.append(files)
    content = {
        "modality": {"0": channel},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "training": training,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return read_msd(folder)


def test_prepared_cases_hold_image_label_and_foreground(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "raw")
    plan = plan_dataset(dataset, tmp_path / "prepared")
    prepared = prepare_cases(dataset, dataset.training, plan, tmp_path / "prepared")
    assert [case.id for case in prepared] == ["case_0", "case_1", "case_2"]
    case = pickle.loads(pickle.dumps(prepared[0]))
    image, label = case.open_image(), case.open_label()
    assert isinstance(image, np.memmap) and image.dtype == np.float32 and image.shape == (1, *case.shape)
    assert isinstance(label, np.memmap) and label.dtype == np.uint8 and label.shape == case.shape == (4, 10, 12)
    assert case.foreground.keys() == {1, 2} and prepared[1].foreground.keys() == {1}
    for value, rows in case.foreground.items():
        assert (label[tuple(rows.T)] == value).all() and len(rows) == (label == value).sum()
    expected = preprocess(read_volume(dataset.training[0].images, plan.depth_axis), plan)
    np.testing.assert_array_equal(image, expected.image)


def test_finished_cases_are_kept_until_something_changes(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "raw")
    plan = plan_dataset(dataset, tmp_path / "prepared")

    def times(plan_used: Plan = plan) -> list[int]:
        cases = prepare_cases(dataset, dataset.training, plan_used, tmp_path / "prepared")
        return [case.image.stat().st_mtime_ns for case in cases]

    first = times()
    assert times() == first
    assert times(replace(plan, patch_size=(4, 4, 4), batch_size=9)) == first  # cases do not depend on the patch
    os.utime(dataset.training[1].images[0], (1, 1))
    second = times()
    assert second[0] == first[0] and second[1] != first[1]
    coarse = prepare_cases(dataset, dataset.training, replace(plan, spacing=(3, 2, 2)), tmp_path / "prepared")
    assert coarse[0].shape == (4, 5, 6)
    assert times() == second  # another spacing has its own folder


def test_cases_of_other_labels_or_raw_files_never_replace_those_that_a_run_reads(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "one" / "raw")
    plan, folder = plan_dataset(dataset, tmp_path / "prepared"), tmp_path / "prepared"
    first = prepare_cases(dataset, dataset.training, plan, folder)
    # As in earlier versions, so that what they prepared is used.
    assert first[0].image.parent.name == f"cases_{plan_key(plan)[:10]}"
    files = [path for path in first[0].image.parent.iterdir()]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    regions = {"all": (1, 2), "b": (2,)}
    others = [
        replace(dataset, label_map={2: 1}, scheme=LabelScheme({0: "background", 1: "a"})),
        replace(dataset, scheme=LabelScheme({0: "background", 1: "a"}, ignore=2)),
        replace(dataset, scheme=LabelScheme(dataset.labels, regions=regions, order=(2, 2))),
        replace(dataset, scheme=LabelScheme(dataset.labels, regions=dict([*regions.items()][::-1]), order=(2, 2))),
        replace(dataset, patterns=("{case}_t2.nii.gz",)),
        write_dataset(tmp_path / "two" / "raw"),
    ]
    places = {first[0].image.parent}
    for number, other in enumerate(others, start=1):
        made = prepare_cases(other, other.training, plan, folder)
        assert prepare_cases(other, other.training, plan, folder) == made
        places.add(made[0].image.parent)
        assert len(places) == number + 1
    assert np.unique(prepare_cases(others[0], dataset.training, plan, folder)[0].open_label()).tolist() == [0, 1]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files} == before
    (folder / "raw_folder.json").unlink()  # as an earlier version left it
    assert prepare_cases(dataset, dataset.training, plan, folder) == first
    assert prepare_cases(others[-1], dataset.training, plan, folder)[0].image.parent != first[0].image.parent
    (tmp_path / "one").rename(tmp_path / "moved")
    moved = read_msd(tmp_path / "moved" / "raw")
    assert prepare_cases(moved, moved.training, plan, folder) == first
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files} == before


def test_a_bad_case_does_not_stop_the_others(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "raw")
    plan = plan_dataset(dataset, tmp_path / "prepared")
    dataset.training[0].images[0].write_bytes(b"broken")
    with pytest.raises(InputError, match=r"1 of 3 cases cannot be prepared\n  - case case_0: .*case_0\.nii\.gz"):
        prepare_cases(dataset, dataset.training, plan, tmp_path / "prepared")
    assert len(prepare_cases(dataset, dataset.training[1:], plan, tmp_path / "prepared")) == 2


def test_real_mri(shared_data: Path, tmp_path: Path) -> None:
    dataset = read_msd(shared_data / "Task04_Hippocampus")
    few = replace(dataset, training=dataset.training[:4])
    plan = plan_dataset(few, tmp_path)
    assert plan.depth_axis == 2 and plan.spacing == (1.0, 1.0, 1.0)
    assert plan.normalisation == ({"scheme": "zscore", "nonzero": False},)
    for case, prepared in zip(few.training, prepare_cases(few, few.training, plan, tmp_path), strict=True):
        assert prepared.open_image().mean() == pytest.approx(0, abs=1e-3)
        assert case.label is not None
        label, geometry = read_label(case.label, plan.depth_axis)
        volume = preprocess(read_volume(case.images, plan.depth_axis), plan)
        one_hot = torch.stack([torch.tensor(prepared.open_label() == value) for value in range(3)]).float()
        restored = restore_labels(one_hot.unbind(dim=1), volume)
        np.testing.assert_array_equal(restored, label)
        native = np.asarray(load(case.label).dataobj)
        np.testing.assert_array_equal(to_native(restored, geometry), native)


def test_real_ct(shared_data: Path, tmp_path: Path) -> None:
    source, raw = shared_data / "CT_example", tmp_path / "raw"
    for kind, name in (("images", "ct"), ("labels", "seg")):
        (raw / f"{kind}Tr").mkdir(parents=True)
        (raw / f"{kind}Tr/ct.nii.gz").symlink_to(source / f"{name}.nii.gz")
    found = np.unique(np.asarray(load(source / "seg.nii.gz").dataobj))
    labels = {str(value): f"organ {value}" for value in range(int(found.max()) + 1)}
    entry = {"image": "imagesTr/ct.nii.gz", "label": "labelsTr/ct.nii.gz"}
    (raw / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "labels": labels, "training": [entry]}))
    dataset = read_msd(raw)
    plan = plan_dataset(dataset, tmp_path / "prepared", spacing=(3.0, 4.0, 4.0))
    scheme = plan.normalisation[0]
    assert scheme["scheme"] == "ct" and -1100 < scheme["lower"] < scheme["mean"] < scheme["upper"] < 2000
    prepared = prepare_cases(dataset, dataset.training, plan, tmp_path / "prepared")[0]
    image, label = prepared.open_image(), prepared.open_label()
    assert image.min() >= (scheme["lower"] - scheme["mean"]) / scheme["std"] - 1e-4
    assert image[0][label > 0].mean() == pytest.approx(0, abs=0.2)
    volume = read_volume(dataset.training[0].images, plan.depth_axis)
    one_hot = torch.stack([torch.tensor(label == value) for value in range(len(labels))]).float()
    restored = restore_labels(one_hot.unbind(dim=1), preprocess(volume, plan))
    original, _ = read_label(dataset.training[0].label or "", plan.depth_axis)
    assert (restored == original).mean() > 0.95
