"""The data of validation: patches, the same in every epoch, and whole cases in some epochs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Dataset, Sampler

from e2enet.common.errors import InputError
from e2enet.data.loaders.patch_sampler import PatchSampler, Triple
from e2enet.data.loaders.patches import crop_subject, load_subject, torch_seeded
from e2enet.data.preparation.store import PreparedCase


class ValidationPatches(Dataset):
    """Unaugmented patches of the validation cases; `dataset[index]` depends only on seed and index.

    Cases take turns: with three cases, patches 0 and 3 are of the first. A case's first patch, and every
    second one after it, is centred on a voxel of a foreground class, drawn evenly among the classes; the
    others lie anywhere. A case smaller than the patch is padded.

    A sample is {"image": float32 (C, D, H, W), "label": int64 (D, H, W), "case": id}.

    Args:
        cases: Prepared cases with labels.
        patch_size: Voxels (D, H, W).
        count: Number of patches; raised to the number of cases and to whole batches.
        batch_size: Patches per batch, of all processes together.
        seed: Any number that is not negative.
    """

    def __init__(
        self, cases: Sequence[PreparedCase], patch_size: Sequence[int], *, count: int, batch_size: int, seed: int
    ) -> None:
        if not cases:
            raise InputError("no validation cases: nothing to score")
        self.cases = list(cases)
        d, h, w = (int(size) for size in patch_size)
        self.patch_size: Triple = (d, h, w)
        self.sampler = PatchSampler()  # the default one, whatever training uses
        self.count = math.ceil(max(count, len(cases)) / batch_size) * batch_size
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, object]:
        if not 0 <= index < self.count:
            raise IndexError(f"patch {index} of {self.count}")
        turn, position = divmod(index, len(self.cases))
        case = self.cases[position]
        (torch_seed,) = np.random.SeedSequence((self.seed, index)).generate_state(1, np.uint64)
        with torch_seeded(torch_seed):
            start = self.sampler.draw_start(case, self.patch_size, foreground=turn % 2 == 0)
        patch = crop_subject(load_subject(case), start, self.patch_size)
        return {
            "image": patch.get_image("image").data,
            "label": patch.get_image("label").data[0].long(),
            "case": patch["case"],
        }


class PeriodicSampler(Sampler[int]):
    """Yields the positions 0 .. `length` - 1 in every `every`-th epoch and in the last, nothing in the others.

    Each of several processes yields every `world_size`-th position, so that every position is taken once. Unlike
    torch's DistributedSampler it repeats no position: a process may have one fewer than another, or none.

    Lightning calls `set_epoch` with the number of finished epochs before each pass, also in a resumed run.

    Args:
        length: Number of positions.
        every: Epochs from one pass to the next.
        epochs: Epochs of the run; None if it has no end.
        rank, world_size: This process and how many there are.
    """

    def __init__(self, length: int, every: int, epochs: int | None, *, rank: int = 0, world_size: int = 1) -> None:
        self.positions = range(rank, length, world_size)
        self.every = every
        self.epochs = epochs
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that the next iteration belongs to."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[int]:
        finished = self.epoch + 1
        if finished % self.every == 0 or finished == self.epochs:
            yield from self.positions
