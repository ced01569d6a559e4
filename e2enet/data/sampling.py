"""Which patch to take from which case, as a pure function of (seed, epoch, index).

A sample depends on nothing but these three numbers: not on the worker that builds it, not on the samples
before it. An interrupted run that goes on at any batch of an epoch therefore sees the very batches it would
have seen.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
import torchio as tio
from torch.utils.data import Dataset, Sampler
from torchio.data.sampler.sampler import PatchSampler

from e2enet.common.errors import InputError
from e2enet.data.augmentation.recipe import Augmentation, Draw
from e2enet.data.augmentation.torchio_transforms import apply_transforms
from e2enet.data.preparation.store import PreparedCase
from e2enet.data.worker_notes import WorkerNotes

Key = tuple[int, int]
Triple = tuple[int, int, int]


class PatchDataset(Dataset):
    """Training patches; `dataset[(epoch, index)]` is always the same sample for the same seed.

    Each sample comes from a case drawn uniformly, with several shares from those of its share in this epoch. Of
    each batch the last `b - round(2 b / 3)` samples (1 of 2, 2 of 6) are centred on foreground. Only the patch is
    read from disk, never the volume.

    A sample is {"image": float32 (C, D, H, W), "label": (D, H, W) in the stored type, "case": id}. Without
    `augment_here` image and label are the box (C, d, h, w) that the patch is to be made from, and "draw" is
    what `Augmentation.apply` is to do with it.

    Args:
        cases: Prepared cases with labels.
        patch_size: Voxels (D, H, W).
        batch_size: Samples per batch, those of all processes together, which decides the foreground rule.
        augmentation: What is done to each patch.
        seed: Any number that is not negative.
        augment_here: Carry out the augmentation; else only draw it.
        transforms: TorchIO transforms of each patch, before the augmentation and wherever that takes place.
        affine: Voxels (d, h, w) -> mm (4, 4) of the prepared cases, see `frame_affine`; for `transforms`.
        shares: Parts of a batch, one per process, that draw from equally many cases of their own, if there are enough.

    `notes` says what each worker of a loader reads; the loader replaces it by one with a line for each of them.
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
        transforms: Sequence[tio.Transform] = (),
        affine: np.ndarray | None = None,
        shares: int = 1,
    ) -> None:
        if not cases:
            raise InputError("no training cases: nothing to draw patches from")
        self.cases = list(cases)
        self.sampler = ForegroundSampler(patch_size)
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.seed = seed
        self.augment_here = augment_here
        self.transforms = list(transforms)
        self.affine = affine
        self.shares = shares if len(cases) >= shares else 1
        self.notes = WorkerNotes([case.id for case in self.cases], num_workers=0)

    def __getitem__(self, key: Key) -> dict[str, object]:
        epoch, index = key
        case_draw, torch_seed = np.random.SeedSequence((self.seed, epoch, index)).generate_state(2, np.uint64)
        position = self._position(epoch, index, int(case_draw))
        foreground = is_foreground_sample(index, self.batch_size)
        with self.notes.reading(position, f"epoch {epoch}, sample {index}"):
            return self._sample(self.cases[position], torch_seed, foreground)

    def _position(self, epoch: int, index: int, draw: int) -> int:
        size = len(self.cases) // self.shares
        place = index % self.batch_size * self.shares // self.batch_size * size + draw % size
        order = np.random.default_rng((self.seed, epoch)).permutation if self.shares > 1 else np.arange
        return int(order(len(self.cases))[place])

    def _sample(self, case: PreparedCase, torch_seed: np.uint64, foreground: bool) -> dict[str, object]:
        subject = load_subject(case, self.affine)
        with torch_seeded(torch_seed):
            draw = self.augmentation.draw(subject.get_image("image").shape[0])
            box = self._read_box(subject, draw, foreground=foreground)
            box = apply_transforms(box, self.transforms)
        image, label = box.get_image("image").data, box.get_image("label").data[0]
        sample: dict[str, object] = {"image": image, "label": label, "case": box["case"]}
        if self.augment_here:
            images, labels = self.augmentation.apply([image], [label], [draw])
            return sample | {"image": images[0], "label": labels[0]}
        return sample | {"draw": draw}

    def _read_box(self, subject: tio.Subject, draw: Draw, foreground: bool) -> tio.Subject:
        """The box around a patch that the draw needs; both sizes differ by an even number, so their centre is one."""
        start, box_size = self.sampler.draw_start(subject, foreground), self.augmentation.box_size(draw)
        sizes = zip(start, self.sampler.size, box_size, strict=True)
        return crop_subject(subject, [first - (larger - size) // 2 for first, size, larger in sizes], box_size)


class CaseDataset(Dataset):
    """Whole prepared cases, by position: the dict of a training sample, at the case's own shape."""

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
    """Yields the keys (epoch, index) of one epoch, in order; Lightning calls `set_epoch` before each.

    Several processes share each batch: of a batch of `world_size` times `batch_size` samples the first takes the
    first `batch_size`, and so on. Their samples are disjoint, equally many, and together those that a process alone
    has with the larger batch.

    Args:
        steps: Batches per epoch and process.
        batch_size: Samples per batch and process.
        rank, world_size: This process and how many there are.
        start: The first epoch there is, and the first batch of it that is yielded: where a resumed run goes on.
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
        # Lightning sets 0 before it has read at which epoch it goes on, and loader workers begin to draw at once.
        self.epoch = max(epoch, self.start[0])

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[Key]:
        first_step = self.start[1] if self.epoch == self.start[0] else 0
        for step in range(first_step, self.steps):
            first = (step * self.world_size + self.rank) * self.batch_size
            yield from ((self.epoch, first + position) for position in range(self.batch_size))


class ForegroundSampler(PatchSampler):
    """TorchIO sampler of patches anywhere or on foreground, from coordinates found beforehand.

    TorchIO's LabelSampler builds a probability map of the volume per subject; here the subject carries,
    under "foreground", the coordinates {class: int array (N, 3)} that preparation has stored. Unlike
    TorchIO's samplers it takes images smaller than the patch: they are padded, equally on both sides.

    Args:
        patch_size: Voxels (D, H, W).
    """

    def __init__(self, patch_size: Sequence[int]) -> None:
        d, h, w = (int(size) for size in patch_size)
        super().__init__((d, h, w))
        self.size: Triple = (d, h, w)

    def __call__(self, subject: tio.Subject, num_patches: int | None = None) -> Generator[tio.Subject]:
        """Yield patches centred on foreground, `num_patches` of them or without end."""
        yielded = 0
        while num_patches is None or yielded < num_patches:
            yield crop_subject(subject, self.draw_start(subject, foreground=True), self.size)
            yielded += 1

    def draw_start(self, subject: tio.Subject, foreground: bool) -> Triple:
        """First voxel (d, h, w) of a random patch; negative where the image is padded.

        Along an axis where the patch fits, it lies within the image: a patch on foreground has the chosen
        voxel at its centre (voxel size // 2) unless it had to move inwards. Where it does not fit, the
        image is in its middle. A case without foreground gives a patch anywhere.
        """
        lowest, highest = zip(*map(start_range, subject.spatial_shape, self.size), strict=True)
        coordinates = cast(Mapping[int, np.ndarray], subject["foreground"])
        present = sorted(coordinates)
        if foreground and present:
            voxels = coordinates[present[_draw_below(len(present))]]  # every class that is present is equally likely
            voxel = voxels[_draw_below(len(voxels))]
            start = np.clip(voxel - np.array(self.size) // 2, lowest, highest)
        else:
            ranges = zip(lowest, highest, strict=True)
            start = np.array([low + _draw_below(high - low + 1) for low, high in ranges])
        return int(start[0]), int(start[1]), int(start[2])


@contextmanager
def torch_seeded(seed: np.uint64) -> Iterator[None]:
    """Within the block torch draws from this seed; after it, as if the block had not been."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed >> np.uint64(1)))  # 63 bits: above, torch takes it for negative
        yield


def is_foreground_sample(index: int, batch_size: int) -> bool:
    """Whether a sample is centred on foreground: true of the last b - round(2 b / 3) of each batch of b."""
    return index % batch_size >= round(2 * batch_size / 3)


def start_range(image_size: int, patch_size: int) -> tuple[int, int]:
    """Smallest and largest start of a patch along one axis.

    0 and 5 for a patch of 8 in 13 voxels; -1 and -1 for 8 in 5 voxels (padding of 1 before and 2 after).
    """
    if patch_size <= image_size:
        return 0, image_size - patch_size
    start = -((patch_size - image_size) // 2)
    return start, start


def frame_affine(spacing: Sequence[float], depth_axis: int) -> np.ndarray:
    """Affine (4, 4) of a prepared case: voxels (d, h, w) -> mm to the right, to the front and upward (RAS).

    The origin is the case's own first voxel. For axial slices (`depth_axis` 2) an orientation of "SRA".

    Args:
        spacing: mm along (D, H, W).
        depth_axis: The RAS axis (0, 1, 2) that is D; the others follow in order.
    """
    ras_axes = [depth_axis, *(axis for axis in range(3) if axis != depth_axis)]
    affine = np.zeros((4, 4))
    affine[ras_axes, range(3)] = spacing
    affine[3, 3] = 1
    return affine


def load_subject(case: PreparedCase, affine: np.ndarray | None = None) -> tio.Subject:
    """TorchIO subject of a prepared case with "case" and "foreground"; voxels stay on disk until cropped."""
    images: dict[str, tio.Image] = {"image": tio.ScalarImage(tensor=_memory_mapped(case.image), affine=affine)}
    if case.label is not None:
        images["label"] = tio.LabelMap(tensor=_memory_mapped(case.label)[None], affine=affine)
    return tio.Subject(**images, case=case.id, foreground=case.foreground)


def crop_subject(subject: tio.Subject, start: Sequence[int], size: Sequence[int]) -> tio.Subject:
    """Subject of the box `size` that begins at voxel `start`, which its affine tells.

    Outside the image everything is 0: background, at the normalised images' mean intensity.
    """
    patch = {}
    for name, image in subject.get_images_dict(intensity_only=False).items():
        affine = image.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ np.asarray(start)
        patch[name] = type(image)(tensor=crop(image.data, start, size), affine=affine)
    return tio.Subject(**patch, case=subject["case"])


def crop(tensor: torch.Tensor, start: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """Copy of the box (C, *size) of a tensor (C, D, H, W), zero where the box leaves the tensor."""
    inside = all(
        0 <= first <= total - length for first, length, total in zip(start, size, tensor.shape[1:], strict=True)
    )
    box = (tensor.new_empty if inside else tensor.new_zeros)((tensor.shape[0], *size))
    source, target = [slice(None)], [slice(None)]
    for first, length, total in zip(start, size, tensor.shape[1:], strict=True):
        # -2..6 of an image of 5: reads 0..5 and writes it to 2..7 of the box.
        begin, end = min(max(first, 0), total), max(min(first + length, total), 0)
        source.append(slice(begin, end))
        target.append(slice(begin - first, end - first))
    if all(part.start < part.stop for part in source[1:]):
        box[tuple(target)] = tensor[tuple(source)]
    return box


def _memory_mapped(path: object) -> torch.Tensor:
    # "c" (copy on write) reads like "r", and torch accepts it without a warning about read-only memory.
    return torch.from_numpy(np.load(str(path), mmap_mode="c"))


def _draw_below(limit: int) -> int:
    """Uniform whole number from 0 to limit - 1, from torch's generator as in TorchIO's samplers."""
    return int(torch.randint(limit, (1,)).item())
