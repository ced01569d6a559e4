"""The fingerprint of a small dataset: its values, and that only changed cases are read again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.layout import read_msd
from e2enet.data.planning import case_fingerprint
from e2enet.data.planning.fingerprint import (
    Fingerprint,
    cached_fingerprint,
    measure_fingerprint,
    samples_per_case,
)

AFFINE = np.diag((-1.0, -1.0, 3.0, 1.0))


@pytest.fixture
def dataset(toy) -> RawDataset:
    """Toy dataset whose image number i is 10 * (i + 1) in class 1, 1 around it, and 0 in the margin."""
    for number, case in enumerate("abcdef"):
        label = np.zeros((8, 9, 6), np.uint8)
        label[2:5, 2:6, 1:4] = 1
        image = np.zeros((8, 9, 6), np.int16)
        image[1:-1, 1:-1, 1:-1] = 1
        image[label == 1] = 10 * (number + 1)
        toy.write_image(case, image, AFFINE)
        toy.write_label(case, label, AFFINE)
    return read_msd(toy.folder)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the cases in the order in which they are read."""
    read: list[str] = []
    real = case_fingerprint.read_case

    def counted(dataset: RawDataset, case, depth_axis: int):
        read.append(case.id)
        return real(dataset, case, depth_axis)

    monkeypatch.setattr(case_fingerprint, "read_case", counted)
    return read


def test_values(dataset: RawDataset, tmp_path: Path) -> None:
    found = measure_fingerprint(dataset, dataset.training, tmp_path / "kept")
    assert found.depth_axis == 2 and found.num_classes == 3
    assert found.cases[0].id == "a" and found.cases[0].spacing == (3.0, 1.0, 1.0)
    assert found.cases[0].shape == (4, 6, 7)
    assert found.relative_size == pytest.approx(4 * 6 * 7 / (8 * 9 * 6))
    # Every case has the same weight: foreground of 10, 20, .. 60.
    assert found.intensities[0]["mean"] == pytest.approx(35)
    assert found.intensities[0]["std"] == pytest.approx(np.std([10, 20, 30, 40, 50, 60]))
    assert found.intensities[0]["percentile_99_5"] == 60 and found.intensities[0]["percentile_00_5"] == 10
    assert Fingerprint.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_worker_processes_find_the_same(dataset: RawDataset, tmp_path: Path) -> None:
    here = measure_fingerprint(dataset, dataset.training, tmp_path / "here", workers=0)
    assert measure_fingerprint(dataset, dataset.training, tmp_path / "apart", workers=2) == here


def test_only_a_changed_case_is_read_again(dataset: RawDataset, tmp_path: Path, reads: list[str]) -> None:
    first = cached_fingerprint(dataset, tmp_path / "prepared", workers=0)
    assert sorted(reads) == list("abcdef")
    reads.clear()
    assert cached_fingerprint(dataset, tmp_path / "prepared", workers=0) == first and not reads
    os.utime(dataset.training[1].images[0], (1, 1))
    assert cached_fingerprint(dataset, tmp_path / "prepared", workers=0) == first and reads == ["b"]
    reads.clear()
    # A damaged file of either kind is no error: only its contents are read again.
    (tmp_path / "prepared/fingerprint.json").write_text("{broken")
    (tmp_path / "prepared/fingerprint/c.npz").write_bytes(b"broken")
    assert cached_fingerprint(dataset, tmp_path / "prepared", workers=0) == first and reads == ["c"]


def test_an_interrupted_reading_goes_on(
    dataset: RawDataset, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = dataset.training[2].label
    assert damaged is not None
    content = damaged.read_bytes()
    damaged.write_bytes(content[:20])
    with pytest.raises(InputError, match=r"1 of 6 cases cannot be used\n  - case c: .*c\.nii\.gz"):
        cached_fingerprint(dataset, tmp_path / "prepared", workers=0)
    damaged.write_bytes(content)
    reads.clear()
    cached_fingerprint(dataset, tmp_path / "prepared", workers=0)
    assert reads == ["c"]


def test_all_bad_cases_are_reported_at_once(dataset: RawDataset, toy, tmp_path: Path) -> None:
    toy.write_label("a", np.full((8, 9, 6), 7, np.uint8), AFFINE)
    toy.write_label("b", None, np.eye(4))
    with pytest.raises(InputError, match="2 of 6 cases") as caught:
        measure_fingerprint(dataset, dataset.training, tmp_path, workers=0)
    assert "case a" in str(caught.value) and "7 (432 voxels)" in str(caught.value)
    assert "case b" in str(caught.value) and "the affines" in str(caught.value)
    assert "case c" not in str(caught.value)


def test_one_case_more_leaves_the_samples_of_the_others() -> None:
    assert samples_per_case(200) == samples_per_case(201) == 32768
    assert samples_per_case(1) == 2**20 and samples_per_case(10**9) == 1
