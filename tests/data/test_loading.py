"""Loader workers start with one thread each, and ignore signals that announce the end of a job."""

from __future__ import annotations

import os
import signal

import numba
import pytest
import SimpleITK
import torch
from threadpoolctl import threadpool_info
from torch.utils.data import DataLoader, Dataset

from e2enet.data.loaders.loading import limit_worker_threads, start_worker


class Threads(Dataset):
    """Return for each item how many threads its process uses."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, int]:
        pools = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
        itk = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
        return {"torch": torch.get_num_threads(), "itk": itk, "numba": numba.get_num_threads()} | pools


def test_a_worker_uses_one_thread() -> None:
    (threads,) = DataLoader(Threads(), batch_size=2, num_workers=1, worker_init_fn=limit_worker_threads)
    assert {"torch", "itk", "numba"} < threads.keys()
    assert {key: value.tolist() for key, value in threads.items() if value.tolist() != [1, 1]} == {}


class Signalled(Dataset):
    """Send this process a scheduler's signals with each item; the second SIGTERM ends it."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return index


def test_a_worker_outlives_what_announces_the_end() -> None:
    items = iter(DataLoader(Signalled(), batch_size=1, num_workers=1, prefetch_factor=1, worker_init_fn=start_worker))
    assert next(items).item() == 0
    with pytest.raises(RuntimeError, match="worker"):  # the second SIGTERM
        next(items)
