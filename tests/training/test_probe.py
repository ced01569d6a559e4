"""The probe step before training: its report, its error for too little memory, and that it changes nothing."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from e2enet.common.configs import ROOT, as_plain, compose_config
from e2enet.common.errors import InputError
from e2enet.network.dsff import density
from e2enet.training import probe
from e2enet.training.dsff_callback import DSFFCallback
from e2enet.training.module import SegmentationModule
from e2enet.training.probe import Probe, largest_between, largest_from, probe_step
from e2enet.training.run import run_training
from e2enet.training.step_parts import training_settings
from tests.training.conftest import quiet_trainer

PLAN: dict[str, Any] = {
    "depth_axis": 2,
    "spacing": [3.0, 1.0, 1.0],
    "patch_size": [2, 8, 8],
    "strides": [[1, 2, 2]],
    "batch_size": 8,
    "normalisation": [{"scheme": "none"}],
    "median_shape": [4, 10, 8],
}
DATASET: dict[str, Any] = {
    "name": "Tiny",
    "labels": {0: "background", 1: "liver"},
    "channels": ["T1", "T2"],
    "mirror_axes": [],
    "file_ending": ".nii.gz",
}


OUT_OF_MEMORY = """
import sys
from pathlib import Path

from e2enet.common.errors import InputError
from e2enet.network.dsff import density
from e2enet.training import probe
from tests.training.conftest import quiet_trainer
from tests.training.test_probe import PLAN, build_module

module = build_module()
probe.probe_step(quiet_trainer(Path(sys.argv[1])), module)  # what is loaded at a first step takes memory too
module.plan = module.plan.__class__.from_dict({**PLAN, "patch_size": [64, 128, 128], "batch_size": 2})
probe.available_memory = lambda: 64 * 2**20
try:
    probe.probe_step(quiet_trainer(Path(sys.argv[1])), module)
except InputError as error:
    print(error)
"""


def build_module() -> SegmentationModule:
    config = compose_config(["network.base_features=4"])
    return SegmentationModule(as_plain(config.network), PLAN, DATASET, training_settings(config))


@pytest.fixture
def module() -> SegmentationModule:
    return build_module()


@pytest.fixture
def trainer(tmp_path: Path) -> pl.Trainer:
    return quiet_trainer(tmp_path)


def generators() -> list[Any]:
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # type: ignore[index]


def refuse_above(size: int, monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[int]:
    """Let steps of larger batches fail; return the list of batch sizes that are tried."""
    tried: list[int] = []

    def step(trainer: Any, module: Any, batch_size: int) -> float:
        tried.append(batch_size)
        if batch_size > size:
            raise error
        return 0.25

    monkeypatch.setattr(probe, "_seconds_of_step", step)
    return tried


def test_it_reports_time_and_memory(
    module: SegmentationModule, trainer: pl.Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = probe_step(trainer, module)
    assert found.device == "cpu" and found.batch_size == 8 and found.largest_batch is None
    assert found.seconds > 0 and found.peak_bytes > 50 * 2**20 and found.free_bytes > 0
    assert json.loads((tmp_path / "probe.json").read_text()) == vars(found)
    assert f"a step of 8 patches of 2 x 8 x 8 on cpu: {found.seconds:.3f} s" in capsys.readouterr().out


def test_it_leaves_weights_gradients_and_generators_alone(module: SegmentationModule, trainer: pl.Trainer) -> None:
    def draw(*_: Any) -> None:
        torch.rand(1), np.random.rand(), random.random()

    next(module.network.children()).register_forward_hook(draw)  # the hook is copied with the network
    module.eval()
    before, drawn = {name: value.clone() for name, value in module.state_dict().items()}, generators()
    probe_step(trainer, module)
    assert generators() == drawn
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters()) and not module.network.training


def test_a_run_is_bit_identical_with_and_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    densities = []

    def probe_and_look(trainer: Any, module: SegmentationModule) -> None:
        densities.append(density(module.network))
        probe_step(trainer, module)

    monkeypatch.setattr("e2enet.training.run.probe_step", probe_and_look)

    def train(wanted: bool) -> tuple[dict[str, Any], list[dict[str, str]], list[Any]]:
        folder = tmp_path / str(wanted)
        overrides = [
            "data.num_train=5",
            "data.num_test=0",
            "data.shape=[32,32,12]",
            "plan.patch_size=[4,8,8]",
            "plan.strides=[[1,2,2]]",
            "plan.batch_size=2",
            "network.base_features=4",
            "training.epochs=2",
            "training.steps_per_epoch=4",
            "training.validate_full=0",
            "dsff.update_every=2",
            "trainer.accelerator=cpu",
            f"trainer.probe={str(wanted).lower()}",
            "final.predict=false",
            f"paths.data={tmp_path}/data",
            f"paths.prepared={tmp_path}/prepared",
            f"run_folder={folder}",
        ]
        run_training(compose_config(overrides), folder)
        assert (folder / "probe.json").exists() == wanted
        checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        with (folder / "metrics.csv").open() as stream:
            rows = [{key: cell for key, cell in row.items() if "time/" not in key} for row in csv.DictReader(stream)]
        return checkpoint, rows, generators()

    (probed, probed_rows, probed_generators), (plain, plain_rows, plain_generators) = train(True), train(False)
    assert densities == [pytest.approx(0.2, abs=0.03)]  # tried with the masks of the first step
    assert probed["global_step"] == plain["global_step"] == 8
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(probed[part], plain[part], rtol=0, atol=0)
    assert probed_rows == plain_rows and len(plain_rows) > 0
    assert probed_generators == plain_generators


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError("Allocation failed (probably too large)."),
    ],
    ids=["GPU", "CPU", "numba"],
)
def test_too_large_a_batch_names_the_one_that_fits(
    error: Exception, module: SegmentationModule, trainer: pl.Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = refuse_above(3, monkeypatch, error)
    with pytest.raises(InputError) as caught:
        probe_step(trainer, module)
    assert str(caught.value) == (
        "plan.batch_size=8: memory of cpu runs out in a step of so many patches of 2 x 8 x 8; expected a smaller "
        "one: plan.batch_size=2 fits (training.accumulate=4 then makes an optimizer step of as many patches)"
    )
    assert tried == [8, 1, 2, 4] and not (tmp_path / "probe.json").exists()
    refuse_above(0, monkeypatch, error)
    with pytest.raises(InputError, match=r"not even one fits: expected a smaller plan\.patch_size"):
        probe_step(trainer, module)


def test_memory_that_runs_out_is_an_error_and_no_death(tmp_path: Path) -> None:
    """Run in a separate process, as oneDNN may not recover from a failed allocation."""
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"plan\.batch_size=2: memory of cpu runs out .*not even one fits", done.stdout)


@pytest.mark.parametrize("growth", ["random", "gradient"])
def test_a_step_that_finds_all_gradients_is_tried_too(
    growth: str, module: SegmentationModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dense(network: Any) -> Any:
        def run(image: Any) -> Any:
            raise MemoryError("too large")

        return run

    monkeypatch.setattr(module, "dense_pass", dense)
    trainer = quiet_trainer(tmp_path, DSFFCallback(0.2, update_every=2, growth=growth))
    if growth == "random":
        assert probe_step(trainer, module).seconds > 0
    else:
        with pytest.raises(InputError, match=r"plan\.batch_size=8: memory of cpu runs out"):
            probe_step(trainer, module)


def test_other_errors_of_a_step_stay_what_they_are(
    module: SegmentationModule, trainer: pl.Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_above(0, monkeypatch, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        probe_step(trainer, module)


def test_on_a_gpu_the_largest_batch_is_searched(
    module: SegmentationModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(trainer: Any, module: Any, size: int) -> Probe | None:
        return Probe("cuda:0", size, 0.5, size * 10**9, 29 * 10**9) if size <= 29 else None

    monkeypatch.setattr(probe, "_try_step", step)
    strategy = SimpleNamespace(root_device=torch.device("cuda", 0))
    found = probe_step(SimpleNamespace(strategy=strategy, default_root_dir=tmp_path), module)  # type: ignore[arg-type]
    assert found == Probe("cuda:0", 8, 0.5, 8 * 10**9, 29 * 10**9, largest_batch=29)
    assert "8.0 GB of memory in all (29.0 GB were free before); the largest batch that fits is 29" in (
        capsys.readouterr().out.replace("\n", "")
    )
    module.plan = module.plan.__class__.from_dict({**PLAN, "batch_size": 50})
    with pytest.raises(InputError, match=r"plan\.batch_size=29 fits \(training\.accumulate=2 "):
        probe_step(SimpleNamespace(strategy=strategy, default_root_dir=tmp_path), module)  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 100, 5000])
def test_the_search_finds_the_largest(most: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= most

    assert largest_from(1, fits) == min(most, 1024)
    assert len(tried) <= 2 * 11
    assert largest_between(0, 5001, fits) == most and largest_between(0, 1, fits) == 0
