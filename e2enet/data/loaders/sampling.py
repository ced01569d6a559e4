"""Training samples as a pure function of (seed, epoch, index).

A sample depends only on these three numbers, not on the worker that builds it or on earlier samples. So a run
that resumes at any batch of an epoch sees the same batches as an uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from e2enet.common.errors import InputError
from e2enet.data.augmentation.recipe import Augmentation
from e2enet.data.loaders.patch_sampler import PatchSampler, Triple, foreground_count
from e2enet.data.loaders.patches import crop_subject, load_subject, shifted_affine, torch_seeded
from e2enet.data.loaders.worker_notes import WorkerNotes
from e2enet.data.preparation.store import PreparedCase
from e2enet.system.threads import one_torch_thread

Key = tuple[int, int]


class PatchDataset(Dataset):
    """Training patches; `dataset[(epoch, index)]` is always the same sample for the same seed.

    The sampler draws each sample's case and position. A share of the samples is centred on foreground, see
    `foreground_count`. Only the patch is read from disk, never the volume.

    A sample is {"image": float32 (C, D, H, W), "label": (D, H, W) in the stored type, "case": id}. Without
    `augment_here` image and label are the box (d, h, w) from which the patch is made. The sample then also holds the
    other input of `Augmentation.apply`: "draw" and, if the case has a nonzero mask, "inside" (d, h, w).

    Args:
        cases: Prepared cases with labels.
        patch_size: Voxels (D, H, W).
        batch_size: Samples per batch, of all processes together.
        augmentation: Augmentation of each patch.
        seed: Any number that is not negative.
        augment_here: Apply the augmentation; else only draw it.
        affine: Voxels (d, h, w) -> mm (4, 4) of the prepared cases, see `frame_affine`; for steps that ask for it.
        sampler: Draws cases and positions; None: a default `PatchSampler`.
        accumulate: Batches per optimizer step.

    `notes` records what each worker of a loader reads. `patch_loader` replaces it by a table of all its workers.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        patch_size: Sequence[int],
        *,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        augment_here: bool = True,
        affine: np.ndarray | None = None,
        sampler: PatchSampler | None = None,
        accumulate: int = 1,
    ) -> None:
        if not cases:
            raise InputError("no training cases: nothing to draw patches from")
        self.cases = list(cases)
        d, h, w = (int(size) for size in patch_size)
        self.patch_size: Triple = (d, h, w)
        self.sampler = sampler or PatchSampler()
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.seed = seed
        self.augment_here = augment_here
        self.affine = affine
        self.accumulate = accumulate
        self.notes = WorkerNotes([case.id for case in self.cases], num_workers=0)

    def __getitem__(self, key: Key) -> dict[str, object]:
        epoch, index = key
        words = np.random.SeedSequence((self.seed, epoch, index)).generate_state(3, np.uint64)
        case_draw, torch_seed, foreground_draw = words
        foreground = self._on_foreground(index, int(foreground_draw) / 2**64)
        with torch_seeded(torch_seed):
            position = self._draw_case(int(case_draw))
            with self.notes.reading(position, f"epoch {epoch}, sample {index}"):
                return self._sample(self.cases[position], foreground)

    def _draw_case(self, draw: int) -> int:
        position = self.sampler.draw_case(self.cases, draw)
        if not isinstance(position, Integral) or not 0 <= position < len(self.cases):
            raise InputError(
                f"data.sampler: {type(self.sampler).__name__}.draw_case gave {position!r}; a position from 0 to "
                f"{len(self.cases) - 1} expected"
            )
        return int(position)

    def _on_foreground(self, index: int, draw: float) -> bool:
        """Whether a sample is centred on foreground; `draw` is the sample's own uniform number in 0..1."""
        share = self.sampler.foreground_share
        count = foreground_count(self.batch_size, share, self.accumulate)
        if count is None:
            return draw < share
        return index % self.batch_size >= self.batch_size - count

    def _sample(self, case: PreparedCase, foreground: bool) -> dict[str, object]:
        subject = load_subject(case, self.affine)
        draw = self.augmentation.draw(subject.get_image("image").shape[0])
        start, box_size = self._draw_start(case, foreground), self.augmentation.box_size(draw)
        draw = draw._replace(affine=shifted_affine(subject.get_image("image").affine, start).tolist())
        # The sizes differ by an even number, so that box and patch have the same centre.
        sizes = zip(start, self.patch_size, box_size, strict=True)
        box = crop_subject(subject, [first - (larger - size) // 2 for first, size, larger in sizes], box_size)
        image, label = box.get_image("image").data, box.get_image("label").data[0]
        sample: dict[str, object] = {"image": image, "label": label, "case": box["case"]}
        inside = {"inside": box.get_image("inside").data[0]} if case.inside else {}
        if self.augment_here:
            with one_torch_thread():  # as in a worker: with more threads the last bits differ
                images, labels = self.augmentation.apply([image], [label], [draw], list(inside.values()))
            return sample | {"image": images[0], "label": labels[0]}
        return sample | inside | {"draw": draw}

    def _draw_start(self, case: PreparedCase, foreground: bool) -> Triple:
        start = self.sampler.draw_start(case, self.patch_size, foreground)
        sizes = zip(start, self.patch_size, case.shape, strict=False)
        if len(start) != 3 or not all(-size < first < total for first, size, total in sizes):
            raise InputError(
                f"data.sampler: {type(self.sampler).__name__}.draw_start gave {start!r} for a patch of "
                f"{self.patch_size} voxels in {case.shape}; the first voxel (d, h, w) of one that meets it expected"
            )
        return start


class CaseDataset(Dataset):
    """Whole prepared cases, by position, as the dict of a training sample at the case's own shape."""

    def __init__(self, cases: Sequence[PreparedCase]) -> None:
        self.cases = list(cases)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, object]:
        case = self.cases[index]
        return {
            "image": torch.from_numpy(np.array(case.open_image())),
            "label": torch.from_numpy(case.open_label().astype(np.int64)),
            "case": case.id,
        }


class EpochSampler(Sampler[Key]):
    """Yields the keys (epoch, index) of one epoch, in order; Lightning calls `set_epoch` before each epoch.

    Several processes share each batch of `world_size` times `batch_size` samples: rank 0 takes the first `batch_size`,
    and so on. Their samples are disjoint and equally many. Together they are the larger batch of a single process.

    Args:
        steps: Batches per epoch and process.
        batch_size: Samples per batch and process.
        rank, world_size: This process and how many there are.
        start: The first epoch and its first batch that is yielded: where a resumed run continues.
    """

    def __init__(
        self, steps: int, batch_size: int, *, rank: int = 0, world_size: int = 1, start: tuple[int, int] = (0, 0)
    ) -> None:
        self.steps = steps
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.start = start
        self.epoch = start[0]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        # Lightning sets 0 before it knows at which epoch it resumes, and loader workers start drawing at once.
        self.epoch = max(epoch, self.start[0])

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[Key]:
        first_step = self.start[1] if self.epoch == self.start[0] else 0
        for step in range(first_step, self.steps):
            first = (step * self.world_size + self.rank) * self.batch_size
            yield from ((self.epoch, first + position) for position in range(self.batch_size))
