"""Where a patch lies in a case, and the patch itself: only its own voxels are read from disk.

Places are drawn from torch's generator, as in TorchIO's samplers; `torch_seeded` makes them follow from a seed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
import torchio as tio
from torchio.data.sampler.sampler import PatchSampler

from e2enet.data.preparation.foreground import ANNOTATED
from e2enet.data.preparation.store import PreparedCase

Triple = tuple[int, int, int]


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

        With an ignore label, as in nnU-Net, a patch anywhere is one on any annotated voxel, so that a loss finds
        something in it; only a case without any gives a patch truly anywhere.
        """
        lowest, highest = zip(*map(start_range, subject.spatial_shape, self.size), strict=True)
        coordinates = cast(Mapping[int, np.ndarray], subject["foreground"])
        keys = set(coordinates)
        present = sorted(keys - {ANNOTATED})
        chosen = None
        if foreground and present:
            chosen = present[_draw_below(len(present))]  # every class that is present is equally likely
        elif ANNOTATED in keys:
            chosen = ANNOTATED
        if chosen is not None:
            voxels = coordinates[chosen]
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
    """TorchIO subject of a prepared case with "case" and "foreground"; voxels stay on disk until cropped.

    Its images are "image", "label" where there is one, and "inside" where the case has a nonzero mask.
    """
    images: dict[str, tio.Image] = {"image": tio.ScalarImage(tensor=_memory_mapped(case.image), affine=affine)}
    if case.label is not None:
        images["label"] = tio.LabelMap(tensor=_memory_mapped(case.label)[None], affine=affine)
    if case.inside is not None:
        images["inside"] = tio.LabelMap(tensor=_memory_mapped(case.inside)[None], affine=affine)
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
