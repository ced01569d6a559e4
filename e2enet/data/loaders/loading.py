"""From single patches to batches: the training loader and its worker processes."""

from __future__ import annotations

import faulthandler
import signal
import sys
from collections.abc import Sequence
from functools import reduce
from types import FrameType
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, default_collate

from e2enet.data.loaders.sampling import EpochSampler, PatchDataset
from e2enet.data.loaders.worker_notes import WorkerNotes


def patch_loader(dataset: PatchDataset, sampler: EpochSampler, *, num_workers: int) -> DataLoader:
    """Return the training loader. Its workers live through all epochs and note which case they read."""
    dataset.notes = WorkerNotes([case.id for case in dataset.cases], num_workers)
    return DataLoader(
        dataset,
        batch_size=sampler.batch_size,
        sampler=sampler,
        collate_fn=collate_patches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=memory_is_pinned(),
        worker_init_fn=start_worker,
    )


def memory_is_pinned() -> bool:
    """Return whether batches are put into pinned memory: only a GPU copies faster from there."""
    return torch.cuda.is_available()


def collate_patches(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate samples into a batch. Boxes that are still to be augmented stay a list: they differ in size.

    A box for a patch of 64 x 160 x 160 holds 1.6 times the patch's voxels on average. Padding a batch of two to the
    larger box would send 2.1 times the voxels to the device. One size that fits every draw would send 12 times.

    Labels are uint8 or int16 by case. In a batch of both all are int16: in a worker, `default_collate` would write them
    in the type of the first sample, where 300 as uint8 is 44.
    """
    if "draw" not in samples[0]:
        wide = reduce(torch.promote_types, (sample["label"].dtype for sample in samples))
        return default_collate([{**sample, "label": sample["label"].to(wide)} for sample in samples])
    return {key: [sample[key] for sample in samples] for key in samples[0]}


def start_worker(worker: int) -> None:
    """Set up a worker process."""
    faulthandler.enable(file=2)  # a crash in C code prints a traceback to stderr too
    limit_worker_threads(worker)
    leave_signals_to_training()


def leave_signals_to_training() -> None:
    """Let this worker survive the signals that schedulers send to all processes of a job before they end it.

    Training still needs its workers to finish its step and write a checkpoint.
    """

    def yield_to_the_next(number: int, frame: FrameType | None) -> None:
        # The first SIGTERM may be a scheduler's. torch and multiprocessing send another to end a hanging worker.
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, yield_to_the_next)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def limit_worker_threads(worker: int) -> None:
    """Limit this worker to one thread: torch, ITK, numba and BLAS would each use every core in each worker."""
    import SimpleITK

    numba = sys.modules.get("numba")  # only if it is loaded already: importing it takes a while
    if numba is not None:
        numba.set_num_threads(1)  # before the others: it starts its own threads and resets OpenMP's number
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    torch.set_num_threads(1)
    threadpool_limits(1)
