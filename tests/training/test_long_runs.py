"""Faults of long runs: a worker that dies, too little shared memory, a loss that is not finite, a leak."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from benchmarks.soak import Readings, judge, judged, latest_step
from e2enet.common.configs import compose_config
from e2enet.common.errors import InputError
from e2enet.data.loaders.sampling import PatchDataset
from e2enet.training.resume import resumed_config
from e2enet.training.run import run_training


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("long_data")
    return [
        "data.num_train=5",
        "data.num_test=0",
        "data.shape=[32,32,12]",
        "plan.patch_size=[4,8,8]",
        "plan.strides=[[1,2,2]]",
        "plan.batch_size=2",
        "network.base_features=4",
        "training.epochs=2",
        "training.steps_per_epoch=3",
        "training.validate_full=0",
        "trainer.accelerator=cpu",
        "trainer.probe=false",
        "final.predict=false",
        f"paths.data={root}/data",
        f"paths.prepared={root}/prepared",
    ]


def test_a_killed_worker_ends_the_run_with_its_case(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = PatchDataset._sample
    drawn: list[int] = []  # one list per worker

    def die(self: PatchDataset, case: Any, *rest: Any) -> Any:
        drawn.append(1)
        # Not at once: torch raises at any point of training, which might interrupt an import.
        if get_worker_info() is not None and len(drawn) > 20 and case.id == "phantom_003":
            time.sleep(2)  # until earlier batches are taken: losing them gives another error
            os.kill(os.getpid(), signal.SIGKILL)
        return sample(self, case, *rest)

    monkeypatch.setattr(PatchDataset, "_sample", die)
    given = [*overrides, "data.num_workers=1", "training.steps_per_epoch=20", f"run_folder={tmp_path}"]
    with pytest.raises(RuntimeError, match=r"^loader worker \d+ ended while reading case phantom_003 ") as caught:
        run_training(compose_config(given), tmp_path)
    # Torch names the signal if its handler finds the death first, otherwise its loader says "exited unexpectedly".
    assert re.search(r"\(DataLoader worker .*(killed by signal: Killed|exited unexpectedly)", str(caught.value))
    assert "fewer data.num_workers" in str(caught.value)


def test_too_little_shared_memory_is_told_before_a_worker_starts(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10_000))
    started: list[int] = []
    monkeypatch.setattr("e2enet.data.loaders.loading.start_worker", started.append)
    # Five batches of two patches of 256 voxels, with a float32 channel and a uint8 label: 12 800 bytes.
    given = [*overrides, "data.num_workers=2", f"run_folder={tmp_path}"]
    with pytest.raises(InputError, match=r"data\.num_workers=2: 5 batches of 0\.0 MB .*data\.num_workers=1"):
        run_training(compose_config(given), tmp_path)
    assert started == []


def test_a_run_that_stopped_at_a_bad_batch_goes_on_without_it(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = PatchDataset._sample
    drawn: list[int] = []

    def spoil(self: PatchDataset, *given: Any) -> Any:
        found = sample(self, *given)
        drawn.append(1)
        if 9 <= len(drawn) <= 10:  # batch 1 of the second epoch
            found["image"][:] = float("nan")
        return found

    monkeypatch.setattr(PatchDataset, "_sample", spoil)
    with pytest.raises(InputError, match=r"loss is nan at epoch 1, batch 1, .*resume="):
        run_training(compose_config([*overrides, f"run_folder={tmp_path}"]), tmp_path)
    (path,) = (tmp_path / "nonfinite").iterdir()
    record = json.loads(path.read_text())
    assert record["step"] == 4 and [case["channels"][0]["nonfinite_voxels"] for case in record["cases"]] == [256, 256]
    del drawn[6:]  # repeat the second epoch
    given = [f"resume={tmp_path}", "training.skip_nonfinite=1"]
    run_training(resumed_config(compose_config(given), given), tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    masks = next(state for name, state in checkpoint["callbacks"].items() if name.startswith("DSFF"))
    assert masks["step"] == 5


def test_a_leak_is_told_from_noise(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    steps = list(range(0, 2000, 5))
    noise = rng.normal(0, 3, len(steps)) + np.where(rng.random(len(steps)) < 0.05, 200, 0)  # peaks, as in validation
    flat = Readings(steps, [500 + 300 * min(step / 400, 1) + float(noise[step // 5]) for step in steps])
    leak = Readings(steps, [size + 0.02 * step for size, step in zip(flat.sizes, steps, strict=True)])
    median, _, slope = judged(flat, 2000)
    assert median == pytest.approx(800, abs=2) and slope * 2000 == pytest.approx(0, abs=3)
    assert judged(leak, 2000)[2] * 2000 == pytest.approx(40, abs=3)
    assert judge({"training": flat}, 2000) and not judge({"training": flat, "worker 1": leak}, 2000)
    assert "NO" in capsys.readouterr().out


def test_the_step_is_that_of_the_last_whole_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert latest_step(path) == 0
    path.write_text("epoch,step,train/loss\n0,9,0.5\n0,19,\n0,2")
    assert latest_step(path) == 20
