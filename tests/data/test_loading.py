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

from e2enet.data.loaders.loading import collate_patches, limit_worker_threads, start_worker


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


class Labels(Dataset):
    """Labels 3 as uint8 and 300 as int16, as two prepared cases may hold them."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, object]:
        label = torch.full((1, 1, 2), 300 if index else 3, dtype=torch.int16 if index else torch.uint8)
        return {"image": torch.zeros(1, 1, 1, 2), "label": label, "case": "ab"[index]}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_large_labels_survive_a_batch_with_small_ones(workers: int, order: list[int]) -> None:
    loader: DataLoader = DataLoader(Labels(), 2, sampler=order, num_workers=workers, collate_fn=collate_patches)
    (batch,) = loader
    assert batch["label"].long()[:, 0, 0, 0].tolist() == [[3, 300][index] for index in order]
    assert batch["case"] == ["ab"[index] for index in order]
    (small,) = DataLoader(Labels(), 1, sampler=[0], num_workers=workers, collate_fn=collate_patches)
    assert small["label"].dtype == torch.uint8  # an eighth of the bytes of int64
