"""Disk and memory for preparation: forecast from headers, not exceeded, and refused if they do not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from e2enet.common.errors import InputError
from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.layout import read_msd
from e2enet.data.planning.plan import Plan
from e2enet.data.planning.plan_file import plan_dataset
from e2enet.data.preparation import forecast as forecasting
from e2enet.data.preparation.cases import prepare_cases
from e2enet.data.preparation.forecast import PEAK_FACTOR, forecast
from e2enet.system import workload


@pytest.fixture
def dataset(toy) -> RawDataset:
    return read_msd(toy.folder)


@pytest.fixture
def plan(dataset: RawDataset, tmp_path: Path) -> Plan:
    return plan_dataset(dataset, tmp_path / "prepared", spacing=(1, 1, 1))


def test_disk_and_memory_follow_from_the_headers(dataset: RawDataset, plan: Plan, tmp_path: Path) -> None:
    found = forecast(dataset, dataset.training, plan, tmp_path / "prepared/not/yet/there")
    voxels = 8 * 9 * 18  # slices of 3 mm become three of 1 mm
    coordinates = 12 * voxels  # two classes cannot have more voxels than the case
    assert found.num_cases == 6 and found.disk == 6 * (voxels * (4 + 1) + coordinates)
    assert found.load.workers == 0 and found.load.memory == int(PEAK_FACTOR * 4 * voxels)
    prepare_cases(dataset, dataset.training, plan, tmp_path / "prepared")
    written = [path for path in (tmp_path / "prepared").rglob("cases_*/*") if path.suffix in (".npy", ".npz")]
    headers = 6 * (2 * 128 + 1024)
    assert 0.4 * found.disk < sum(path.stat().st_size for path in written) < found.disk + headers


def test_a_full_disk_is_refused_before_anything_is_written(
    dataset: RawDataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecasting, "free_disk", lambda folder: 1000)
    with pytest.raises(
        InputError,
        match=r"6 cases takes .* 0\.0 MB of it for case a; 0\.0 MB are free .*paths\.prepared",
    ):
        prepare_cases(dataset, dataset.training, plan, tmp_path / "prepared")
    assert not list((tmp_path / "prepared").glob("cases_*"))


def test_too_little_memory_is_refused_before_anything_is_written(
    dataset: RawDataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workload, "available_memory", lambda: 1000)
    with pytest.raises(InputError, match=r"case a takes about .* of memory, 0\.0 MB are free"):
        prepare_cases(dataset, dataset.training, plan, tmp_path / "prepared")
    assert not list((tmp_path / "prepared").glob("cases_*"))


def test_unreadable_cases_are_left_to_the_work_itself(dataset: RawDataset, plan: Plan, tmp_path: Path) -> None:
    dataset.training[0].images[0].write_bytes(b"broken")
    assert forecast(dataset, dataset.training, plan, tmp_path).num_cases == 6


MEASURE = """
import sys
import torch
from e2enet.data.formats.layout import read_msd
from e2enet.data.planning.plan import Plan
from e2enet.data.preparation.cases import prepare_case
from e2enet.data.preparation.resample import resample_image
from e2enet.data.preparation.store import CaseStore
import json, numpy, scipy.ndimage

torch.set_num_threads(1)
torch.mm(torch.ones(2, 2), torch.ones(2, 2))
dataset = read_msd(sys.argv[1])
store = CaseStore.of(sys.argv[2], dataset, Plan.from_dict(json.loads(sys.argv[3])))


def peak() -> int:
    # Not ru_maxrss, which starts from that of the process that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


before = peak()
prepare_case(store, dataset.training[0])
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("spacing", "scheme"),
    [
        ((2.0, 0.8, 0.8), {"scheme": "zscore", "nonzero": True}),
        ((3.0, 2.0, 2.0), {"scheme": "zscore", "nonzero": False}),
        ((9.0, 0.9, 0.9), {"scheme": "ct", "lower": 10.0, "upper": 900.0, "mean": 500.0, "std": 100.0}),
    ],
)
def test_peak_memory_is_within_the_forecast(
    toy, tmp_path: Path, spacing: tuple[float, float, float], scheme: dict[str, object]
) -> None:
    shape = (192, 192, 100)
    image = np.random.default_rng(0).integers(1, 1000, shape).astype(np.int16)
    label = np.zeros(shape, np.uint8)
    label[40:150, 40:150, 20:80] = 1
    for path, array in ((toy.image("a"), image), (toy.label("a"), label)):
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.5, 1.0])), path)
    dataset = read_msd(toy.folder)
    plan = replace(plan_of(spacing), normalisation=(scheme,))
    command = [sys.executable, "-c", MEASURE, str(toy.folder), str(tmp_path / "out"), json.dumps(plan.to_dict())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    resampled = np.prod([100 * 2.5 / spacing[0], 192 / spacing[1], 192 / spacing[2]])
    case = 4 * max(image.size, resampled)
    assert case < int(done.stdout) <= PEAK_FACTOR * case, f"{int(done.stdout) / case:.2f} float32 sizes"
    assert dataset.training[0].id == "a" and PEAK_FACTOR <= 6


def plan_of(spacing: tuple[float, float, float]) -> Plan:
    return Plan(2, spacing, (32, 32, 32), ((2, 2, 2),), 2, ({"scheme": "none"},), (32, 32, 32))
