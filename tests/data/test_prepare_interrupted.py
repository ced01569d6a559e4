"""Prepared cases do not depend on interruptions: kills at any moment, two runs at once, workers that die."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from e2enet.data.formats.dataset import RawDataset
from e2enet.data.formats.layout import read_msd
from e2enet.data.planning.plan_file import plan_dataset
from e2enet.data.preparation.cases import prepare_case, prepare_cases
from e2enet.data.preparation.store import CaseStore

# Each write is slowed down, so that kills hit the middle of a case. "ready" is printed as work begins.
RUN = """
import sys, time
from pathlib import Path
import e2enet.common.files as files

replace = files.os.replace
def slow(*paths):
    time.sleep(float(sys.argv[4]))
    replace(*paths)
files.os.replace = slow

from e2enet.data.formats.layout import read_msd
from e2enet.data.planning.plan_file import plan_dataset
from e2enet.data.preparation.cases import prepare_cases

if __name__ == "__main__":
    dataset, folder, workers = read_msd(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    print("ready", flush=True)
    plan = plan_dataset(dataset, folder, spacing=[2, 1.5, 1.5], workers=workers)
    prepare_cases(dataset, dataset.training, plan, folder, workers)
"""

# The worker is killed at case b, as when memory runs out.
DIE = """
import os, signal, sys
from e2enet.common.errors import InputError
from e2enet.data.formats.layout import read_msd
from e2enet.data.planning.plan_file import plan_dataset
from e2enet.data.preparation import cases

def die(store, case, prepare_case=cases.prepare_case):
    if case.id == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    prepare_case(store, case)

if __name__ == "__main__":
    dataset = read_msd(sys.argv[1])
    plan = plan_dataset(dataset, sys.argv[2])
    cases.prepare_case = die
    try:
        cases.prepare_cases(dataset, dataset.training, plan, sys.argv[2], workers=1)
    except InputError as error:
        print(error)
"""


@pytest.fixture
def dataset(toy) -> RawDataset:
    return read_msd(toy.folder)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(RUN)
    return path


def start(program: Path, raw: Path, folder: Path, workers: int = 0, delay: float = 0.0) -> subprocess.Popen:
    command = [sys.executable, str(program), str(raw), str(folder), str(workers), str(delay)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(run: subprocess.Popen) -> None:
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def expected(dataset: RawDataset, tmp_path: Path) -> dict[str, bytes]:
    """Every file of an undisturbed run in this process."""
    folder = tmp_path / "undisturbed"
    plan = plan_dataset(dataset, folder, spacing=[2, 1.5, 1.5])
    prepare_cases(dataset, dataset.training, plan, folder)
    files = contents(folder)
    assert sum(name.endswith(".image.npy") for name in files) == 6
    return files


def test_killed_runs_go_on_to_the_same_bytes(toy, tmp_path: Path, program: Path, expected: dict[str, bytes]) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "killed"
    for _ in range(4):
        run = start(program, toy.folder, folder, delay=0.03)
        assert run.stdout is not None and run.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.5))
        run.kill()
        run.communicate()
    finish(start(program, toy.folder, folder))
    assert contents(folder) == expected


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(toy, tmp_path: Path, program: Path, expected: dict[str, bytes]) -> None:
    folder = tmp_path / "killed"
    run = start(program, toy.folder, folder, workers=2, delay=0.2)
    deadline = time.monotonic() + 60
    while not list(folder.rglob(".tmp-*")) and time.monotonic() < deadline:
        time.sleep(0.02)  # until a worker writes
    run.kill()
    run.communicate(timeout=60)  # its output stays open until the last worker has ended
    finish(start(program, toy.folder, folder, workers=2))
    assert contents(folder) == expected


@pytest.mark.slow
def test_two_runs_at_once_make_the_same_bytes(toy, tmp_path: Path, program: Path, expected: dict[str, bytes]) -> None:
    folder = tmp_path / "shared"
    runs = [start(program, toy.folder, folder, workers=0, delay=0.02) for _ in range(2)]
    for run in runs:
        finish(run)
    assert contents(folder) == expected


def test_a_dying_worker_is_reported_with_its_case(dataset: RawDataset, toy, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(DIE)
    command = [sys.executable, str(program), str(toy.folder), str(tmp_path / "prepared")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"1 of 6 cases cannot be prepared\n  - case b: .*SIGKILL.*memory", said), said
    plan = plan_dataset(dataset, tmp_path / "prepared")
    finished = [CaseStore.of(tmp_path / "prepared", dataset, plan).find(case) for case in dataset.training]
    assert [case.id for case in finished if case is not None] == list("acdef")


def test_a_half_redone_case_is_not_taken_for_the_old_one(
    dataset: RawDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy
) -> None:
    plan = plan_dataset(dataset, tmp_path)
    store = CaseStore.of(tmp_path, dataset, plan)
    case = dataset.training[0]
    before = prepare_cases(dataset, [case], plan, tmp_path)[0].open_image().copy()
    old, times = case.images[0].read_bytes(), case.images[0].stat()
    toy.write_image("a", np.full((8, 9, 6), 50, np.int16))
    # Preparation stops after the image. Then the old raw file returns, with its old date.
    monkeypatch.setattr(CaseStore, "write_label", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare_case(store, case)
    monkeypatch.undo()
    case.images[0].write_bytes(old)
    os.utime(case.images[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.find(case) is None
    np.testing.assert_array_equal(prepare_cases(dataset, [case], plan, tmp_path)[0].open_image(), before)
