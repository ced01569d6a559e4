"""Reads a patch of a case: only its own voxels are read from disk. `torch_seeded` seeds its random draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torchio as tio

from e2enet.data.preparation.store import PreparedCase


@contextmanager
def torch_seeded(seed: np.uint64) -> Iterator[None]:
    """Seed the host's generator of torch within the block; restore its state after it."""
    with torch.random.fork_rng(devices=[]):
        # 63 bits: torch reads a larger one as negative. torch.manual_seed would seed a GPU's generators too.
        torch.default_generator.manual_seed(int(seed >> np.uint64(1)))
        yield


def frame_affine(spacing: Sequence[float], depth_axis: int) -> np.ndarray:
    """Affine (4, 4) of a prepared case: voxels (d, h, w) -> mm to the right, to the front and upward (RAS).

    The origin is the case's first voxel. For axial slices (`depth_axis` 2) the orientation is "SRA".

    Args:
        spacing: mm along (D, H, W).
        depth_axis: The RAS axis (0, 1, 2) that is D; the others follow in order.
    """
    ras_axes = [depth_axis, *(axis for axis in range(3) if axis != depth_axis)]
    affine = np.zeros((4, 4))
    affine[ras_axes, range(3)] = spacing
    affine[3, 3] = 1
    return affine


def shifted_affine(affine: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """Return the affine (4, 4) of a box that begins at voxel `start` of an image with `affine`."""
    shifted = np.array(affine, dtype=float)
    shifted[:3, 3] += shifted[:3, :3] @ np.asarray(start)
    return shifted


def load_subject(case: PreparedCase, affine: np.ndarray | None = None) -> tio.Subject:
    """Return a prepared case as a TorchIO subject; voxels stay on disk until cropped.

    It holds "image", "label" if there is one, "inside" if the case has a nonzero mask, and the id as "case".
    """
    images: dict[str, tio.Image] = {"image": tio.ScalarImage(tensor=_memory_mapped(case.image), affine=affine)}
    if case.label is not None:
        images["label"] = tio.LabelMap(tensor=_memory_mapped(case.label)[None], affine=affine)
    if case.inside is not None:
        images["inside"] = tio.LabelMap(tensor=_memory_mapped(case.inside)[None], affine=affine)
    return tio.Subject(**images, case=case.id)


def crop_subject(subject: tio.Subject, start: Sequence[int], size: Sequence[int]) -> tio.Subject:
    """Return the subject of the box of `size` voxels at voxel `start`, with a shifted affine.

    Outside the image all values are 0: background, and the mean intensity of normalised images.
    """
    patch = {}
    for name, image in subject.get_images_dict(intensity_only=False).items():
        affine = shifted_affine(image.affine, start)
        patch[name] = type(image)(tensor=crop(image.data, start, size), affine=affine)
    return tio.Subject(**patch, case=subject["case"])


def crop(tensor: torch.Tensor, start: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """Copy the box (C, *size) of a tensor (C, D, H, W), zero where the box leaves the tensor."""
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
