"""A worker that fails or dies leaves the name of its case."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from e2enet.common.errors import InputError
from e2enet.data.augmentation.recipe import Augmentation
from e2enet.data.augmentation.step import AugmentationStep, Patch
from e2enet.data.loaders.loading import patch_loader
from e2enet.data.loaders.sampling import EpochSampler, PatchDataset
from e2enet.data.loaders.worker_notes import WorkerNotes, naming_held_cases
from e2enet.data.preparation.store import PreparedCase

PATCH = (4, 6, 8)
HARMLESS, STRANGE = 0.0, 1.0  # voxel values of the two cases


@dataclass
class At(AugmentationStep):
    """Call `do` for patches of the strange case."""

    do: Callable[[], Any]

    def draw(self, channels: int) -> int:
        return 1

    def apply(self, patch: Patch, drawn: int) -> Patch:
        if patch.image.max() == STRANGE:
            self.do()
        return patch


def raise_value_error() -> None:
    raise ValueError("cannot be turned")


def raise_input_error() -> None:
    raise InputError("b.image.npy: 3 channels, 1 expected")


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def loader(folder: Path, do: Callable[[], Any], num_workers: int) -> DataLoader:
    """Return batches of a harmless case "a" and of case "b", for whose patches `do` is called."""
    cases = []
    for name, value in (("a", HARMLESS), ("b", STRANGE)):
        image, label = folder / f"{name}.image.npy", folder / f"{name}.label.npy"
        np.save(image, np.full((1, 7, 12, 13), value, np.float32))
        np.save(label, np.zeros((7, 12, 13), np.uint8))
        np.savez(folder / f"{name}.foreground.npz")
        cases.append(PreparedCase(name, image, label, shape=(7, 12, 13)))
    dataset = PatchDataset(cases, PATCH, batch_size=2, augmentation=Augmentation(PATCH, {"at": At(do)}), seed=0)
    return patch_loader(dataset, EpochSampler(8, 2), num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_exception_names_its_case_and_keeps_its_traceback(num_workers: int, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"case b cannot be read for training \(epoch 0, sample \d+\)") as caught:
        list(loader(tmp_path, raise_value_error, num_workers))
    assert "ValueError: cannot be turned" in str(caught.value)
    if num_workers:  # the worker's own traceback
        assert "in raise_value_error" in str(caught.value)
    else:
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert isinstance(caught.value.__cause__.__cause__, ValueError)
    with pytest.raises(InputError, match=r"case b: augmentation\.at: b\.image\.npy: 3 channels, 1 expected"):
        list(loader(tmp_path, raise_input_error, num_workers))


@pytest.fixture
def deaths_told_once() -> Iterator[None]:
    """Disable the SIGCHLD handler of torch's loader, which may report a death twice and in unrelated code.

    The loader itself checks its workers every five seconds.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal_handling, "_set_SIGCHLD_handler", lambda: None)
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        yield
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.usefixtures("deaths_told_once")
@pytest.mark.parametrize("die", [kill, leave])
def test_a_worker_that_dies_leaves_the_name_of_its_case(die: Callable[[], None], tmp_path: Path) -> None:
    batches = loader(tmp_path, die, 1)
    iterator: Any = iter(batches)
    with pytest.raises((RuntimeError, EOFError, OSError)) as caught:  # the last two: the batch was only partly sent
        list(iterator)
    told = batches.dataset.notes.explain(caught.value) or ""  # type: ignore[attr-defined]
    iterator._shutdown_workers()  # otherwise the handler finds the dead worker while another loader runs
    assert re.fullmatch(r"loader worker \d+ ended while reading case b", told)


def test_only_deaths_are_explained() -> None:
    notes = WorkerNotes(["a", "b"], num_workers=2)
    notes.table[0] = notes.table.new_tensor([11, 1, 0])
    died = RuntimeError("DataLoader worker (pid(s) 11, 12) exited unexpectedly")
    assert notes.explain(died) == (
        "loader worker 11 ended after reading case b; loader worker 12 ended before its first case"
    )
    outer = ValueError("while training")
    outer.__cause__ = RuntimeError("DataLoader worker (pid 11) is killed by signal: Killed. ")
    assert notes.explain(outer) == "loader worker 11 ended after reading case b"
    assert notes.explain(RuntimeError("worker (pid 11)")) is None


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), FileNotFoundError()]
)
def test_a_batch_half_handed_over_tells_of_its_worker(error: Exception) -> None:
    children = [multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)) for _ in range(2)]
    for child in children:
        child.start()
    notes = WorkerNotes(["a", "b"], num_workers=2)
    for line, child in enumerate(children):
        assert child.pid is not None
        notes.table[line] = notes.table.new_tensor([child.pid, line, 1])
    try:
        children[1].kill()  # it may end a moment after the error
        assert notes.explain(error) == f"loader worker {children[1].pid} ended while reading case b"
        assert notes.explain(ValueError()) is None
    finally:
        children[0].kill()


def test_another_error_of_the_system_passes_though_a_worker_ended() -> None:
    notes = WorkerNotes(["a", "b"], num_workers=1)
    ended = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
    ended.start()
    ended.join()
    assert ended.pid is not None
    notes.table[0] = notes.table.new_tensor([ended.pid, 1, 0])
    loaders = SimpleNamespace(dataset=SimpleNamespace(notes=notes))
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left") as caught, naming_held_cases(lambda: loaders):
        raise full
    assert caught.value is full
    lost = rf"^loader worker {ended.pid} ended after reading case b "
    with pytest.raises(RuntimeError, match=lost), naming_held_cases(lambda: loaders):
        raise ConnectionResetError
