"""From single patches to batches: the training loader and its worker processes."""

from __future__ import annotations

import faulthandler
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, default_collate

from e2enet.data.loaders.sampling import EpochSampler, PatchDataset
from e2enet.data.loaders.worker_notes import WorkerNotes


def patch_loader(dataset: PatchDataset, sampler: EpochSampler, *, num_workers: int) -> DataLoader:
    """Loader of the batches of each epoch; its workers live through all epochs and note what they read."""
    dataset.notes = WorkerNotes([case.id for case in dataset.cases], num_workers)
    return DataLoader(
        dataset,
        batch_size=sampler.batch_size,
        sampler=sampler,
        collate_fn=collate_patches,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=start_worker,
    )


def collate_patches(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One batch of samples. Boxes that are still to be augmented stay a list: they differ in size.

    At 64 x 160 x 160 a box holds 1.6 times its patch's voxels on average. Were all of a batch of two padded to
    the larger one, 2.1 times would travel to the device; with one size that fits every draw, 12 times.
    """
    if "draw" not in samples[0]:
        return default_collate(list(samples))
    return {key: [sample[key] for sample in samples] for key in samples[0]}


def start_worker(worker: int) -> None:
    """What every worker process does first."""
    faulthandler.enable(file=2)  # a crash in C code leaves a traceback too, on stderr
    limit_worker_threads(worker)
    leave_signals_to_training()


def leave_signals_to_training() -> None:
    """Let this worker outlive what schedulers send to all processes of a job before they end it.

    Training finishes its step and writes a checkpoint first, for which it needs its workers.
    """

    def yield_to_the_next(number: int, frame: FrameType | None) -> None:
        # The first may be a scheduler's; whoever ends a worker that hangs (torch, multiprocessing) asks again.
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, yield_to_the_next)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def limit_worker_threads(worker: int) -> None:
    """One thread per worker process: torch, ITK, numba and BLAS would each use every core in each of them."""
    import SimpleITK

    numba = sys.modules.get("numba")  # only where it is loaded already: it takes a while
    if numba is not None:
        numba.set_num_threads(1)  # before the others: it starts threads of its own and resets OpenMP's number
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    torch.set_num_threads(1)
    threadpool_limits(1)
