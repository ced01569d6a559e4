"""Checks, before the workers start, that the batches that wait for training fit into shared memory.

Workers pass their batches on in /dev/shm, which holds 64 MB in a container unless more is asked for. If it is full, the
system kills the worker in the middle of a write (SIGBUS), without an error message.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np

from e2enet.common.errors import InputError
from e2enet.data.loaders.patches import torch_seeded
from e2enet.data.loaders.sampling import PatchDataset
from e2enet.system.workload import gigabytes

SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2  # batches per worker, finished or in progress: torch's default
TRIED_DRAWS = 64  # for the mean size of the boxes that are augmented on the device


def require_shared_memory(
    dataset: PatchDataset, batch_size: int, num_workers: int, processes: int = 1, folder: Path = SHARED_MEMORY
) -> None:
    """Raise InputError if the batches of a loader, in each of `processes` on this machine, do not fit.

    Nothing is checked if there are no workers, or on systems that share memory in another way.
    """
    if num_workers == 0 or not folder.is_dir():
        return
    free, batch = shutil.disk_usage(folder).free, batch_bytes(dataset, batch_size)
    # One more than the workers have: the batch that training uses.
    needed = processes * (num_workers * PREFETCHED + 1) * batch
    if needed <= free:
        return
    fitting = max(0, (free // (processes * batch) - 1) // PREFETCHED)
    several = f" in each of {processes} processes" if processes > 1 else ""
    raise InputError(
        f"data.num_workers={num_workers}: {num_workers * PREFETCHED + 1} batches of {gigabytes(batch)}{several} lie in "
        f"shared memory at once, {gigabytes(needed)}, and {folder} has {gigabytes(free)} free; expected at most "
        f"data.num_workers={fitting}, a smaller plan.batch_size or plan.patch_size, or more shared memory (docker run "
        f"--shm-size={math.ceil(1.5 * needed / 2**30)}g, or mount -o remount,size=.. {folder})"
    )


def batch_bytes(dataset: PatchDataset, batch_size: int) -> int:
    """Return the bytes of image, label and any mask of a batch, as a worker passes it on.

    Boxes that are still to be augmented count with the mean size of some draws.
    """
    case = dataset.cases[0]
    channels = case.open_image().shape[0]
    sizes = [dataset.patch_size]
    if not dataset.augment_here:
        with torch_seeded(np.uint64(0)):
            sizes = [dataset.augmentation.box_size(dataset.augmentation.draw(channels)) for _ in range(TRIED_DRAWS)]
    voxels = sum(math.prod(size) for size in sizes) / len(sizes)
    inside = 1 if case.inside and not dataset.augment_here else 0
    voxel = channels * np.dtype(np.float32).itemsize + case.open_label().itemsize + inside
    return math.ceil(batch_size * voxels * voxel)
