"""Runs that are killed at any moment and resumed end like an uninterrupted run, bit for bit."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from e2enet.common.configs import ROOT
from tests.training.conftest import SMALL_RUN, differences, numbers

STEPS, ACCUMULATE, EVERY = 6, 2, 2
# train.py that kills itself at the n-th call of a Python or C function since training began: an arbitrary moment that
# does not depend on the machine's speed. It writes a line per training batch, and its losses depend on the generators
# from which dropout would draw.
PROGRAM = """
import os, random, runpy, signal, sys
import numpy as np
import torch
from e2enet.training.checkpoints import LastCheckpoint
from e2enet.training.module import SegmentationModule

last_call, folder, sys.argv, calls = int(sys.argv[1]), sys.argv[2], sys.argv[3:], 0

def count(frame, event, argument):
    global calls
    if event in ("call", "c_call"):
        calls += 1
        if calls == last_call:
            os.kill(os.getpid(), signal.SIGKILL)

def start(self, *arguments, begin=LastCheckpoint.on_train_start):
    begin(self, *arguments)
    sys.setprofile(count)

def end(self, *arguments, finish=LastCheckpoint.on_train_end):
    finish(self, *arguments)
    sys.setprofile(None)

def step(self, batch, index, loss_of=SegmentationModule.training_step):
    with open(folder + "/seen.csv", "a") as stream:
        print(self.current_epoch, index, *batch["case"], batch["image"].sum().item(), sep=",", file=stream)
    return loss_of(self, batch, index) * (1 + torch.rand(()) + np.random.rand() + random.random())

LastCheckpoint.on_train_start, LastCheckpoint.on_train_end, SegmentationModule.training_step = start, end, step
runpy.run_path(sys.argv[0], run_name="__main__")
print("calls:", calls)
"""


class Reference(NamedTuple):
    """The uninterrupted run: its overrides, its folder, and the number of calls during training."""

    overrides: list[str]
    folder: Path
    calls: int


def train(arguments: list[str], folder: Path, last_call: int = -1) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    script = str(ROOT / "train.py")
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(last_call), str(folder), script, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    root = tmp_path_factory.mktemp("killed_runs")
    overrides = [
        *SMALL_RUN,
        "data.num_test=0",
        "data.num_workers=1",
        "training.epochs=4",
        f"training.steps_per_epoch={STEPS}",
        f"training.accumulate={ACCUMULATE}",
        f"training.checkpoint_every={EVERY}",
        "training.validation_patches=4",
        "training.validate_full=2",
        "dsff.update_every=3",
        "trainer.log_every_n_steps=1",
        f"paths.data={root}/data",
        f"paths.prepared={root}/prepared",
    ]
    result = train([*overrides, f"run_folder={root}/whole"], root / "whole")
    assert result.returncode == 0, result.stderr
    return Reference(overrides, root / "whole", int(result.stdout.rpartition("calls: ")[2]))


def seen(folder: Path) -> list[list[str]]:
    with (folder / "seen.csv").open() as stream:
        return list(csv.reader(stream))


def check_equal(folder: Path, reference: Reference) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        found, expected = (
            torch.load(run / "checkpoints" / name, weights_only=True) for run in (folder, reference.folder)
        )
        assert {"state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops", "e2enet"} <= set(found)
        assert differences(found, expected) == []
    assert numbers(folder) == numbers(reference.folder)
    # Each batch is the same whenever it is trained on, and no kill costs more than EVERY steps.
    batches = {(epoch, index): sample for epoch, index, *sample in seen(reference.folder)}
    assert all(batches[epoch, index] == sample for epoch, index, *sample in seen(folder))
    positions = [int(epoch) * STEPS + int(index) for epoch, index, *_ in seen(folder)]
    assert sorted(set(positions)) == list(range(4 * STEPS))
    lost = [before + 1 - after for before, after in pairwise(positions)]
    assert min(lost) >= 0 and max(lost) <= EVERY * ACCUMULATE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "kills"),
    [(0, 1), *((seed, 4) for seed in range(6))],
)
def test_a_run_killed_at_random_moments_ends_as_the_one_that_was_not(
    seed: int, kills: int, reference: Reference, tmp_path: Path
) -> None:
    moments = sorted(random.Random(seed).sample(range(1, reference.calls), kills))
    folder = tmp_path / "run"
    arguments = [*reference.overrides, f"run_folder={folder}"]
    for before, moment in zip([0, *moments], moments, strict=False):
        result = train(arguments, folder, moment - before)
        assert result.returncode == -signal.SIGKILL, result.stderr
        arguments = [f"resume={folder}"]
    result = train(arguments, folder)
    assert result.returncode == 0, result.stderr
    check_equal(folder, reference)
