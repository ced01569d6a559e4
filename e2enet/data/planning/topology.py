"""nnU-Net's rules for strides, the memory of feature maps, patch size and batch size.

Source: the default ExperimentPlanner of nnU-Net 2.8 for 3d_fullres (Isensee et al. 2021, supplementary
section on the network topology), reimplemented. All triples are in the frame (D, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from e2enet.common.errors import InputError
from e2enet.data.formats.grid import SPACING_ROUNDING

Triple = tuple[int, int, int]
Strides = tuple[Triple, ...]

TWICE = 2 * (1 - SPACING_ROUNDING)  # a ratio of spacings; the rounding of headers decides nothing
MIN_EDGE = 4  # voxels: no axis is halved below it
BASE_FEATURES, MAX_FEATURES = 32, 320  # of nnU-Net's reference network, whatever network is trained
REFERENCE_SIZE = 560_000_000  # feature-map values that nnU-Net fits in REFERENCE_GB at batch size 2
REFERENCE_GB = 8.0
REFERENCE_BATCH = 2
START_EDGE = 256  # the first patch has the volume of a cube with this edge


def pooling_strides(spacing: Sequence[float], patch_size: Sequence[float]) -> Strides:
    """The strides between levels for a patch: axes of finer spacing are halved first, until spacings are alike.

    Only axes of at least 8 voxels can be halved. Each level halves those of them with a spacing below twice their
    smallest spacing. A single axis is halved only if it has at least 12 voxels. Worked: 5 x 1 x 1 mm is halved by
    (1, 2, 2) to 5 x 2 x 2, again to 5 x 4 x 4, then along all axes.
    """
    size, mm = list(patch_size), list(spacing)
    strides: list[Triple] = []
    while True:
        large = [axis for axis in range(3) if size[axis] >= 2 * MIN_EDGE]
        finest = min((mm[axis] for axis in large), default=0.0)
        halved = [axis for axis in large if mm[axis] / finest < TWICE]
        if not halved or (len(halved) == 1 and size[halved[0]] < 3 * MIN_EDGE):
            return tuple(strides)
        stride = _triple(2 if axis in halved else 1 for axis in range(3))
        size = [math.ceil(edge / step) for edge, step in zip(size, stride, strict=True)]
        mm = [edge * step for edge, step in zip(mm, stride, strict=True)]
        strides.append(stride)


def tiny_stride(spacing: Sequence[float], patch_size: Sequence[float]) -> Triple:
    """One stride for volumes too small to be halved by the rule, since a network has at least two levels.

    Considers the axes of more than one voxel, or all if there are none. Halves those of them with a spacing below
    twice their smallest spacing.
    """
    large = [axis for axis in range(3) if patch_size[axis] > 1] or [0, 1, 2]
    finest = min(spacing[axis] for axis in large)
    return _triple(2 if axis in large and spacing[axis] / finest < TWICE else 1 for axis in range(3))


def total_stride(strides: Sequence[Sequence[int]]) -> Triple:
    """Product of the strides per axis; the patch must be a multiple of it."""
    return _triple(math.prod(int(stride[axis]) for stride in strides) for axis in range(3))


def round_up(size: Sequence[float], multiple: Sequence[int]) -> Triple:
    """The next size that is a multiple: 35.5 and 8 -> 40."""
    return _triple(math.ceil(edge / step) * step for edge, step in zip(size, multiple, strict=True))


def round_down(size: Sequence[int], multiple: Sequence[int]) -> Triple:
    """The last size that is a multiple, at least one multiple: 35 and 8 -> 32, 5 and 8 -> 8."""
    return _triple(max(edge // step, 1) * step for edge, step in zip(size, multiple, strict=True))


def feature_map_size(patch_size: Sequence[int], strides: Strides, num_classes: int) -> int:
    """Values in all conv outputs of nnU-Net's PlainConvUNet for one patch, its measure of memory.

    Counts two convs per encoder level, a transposed conv and two convs per decoder level, and the class maps.
    """
    sizes = [tuple(patch_size)]
    for stride in strides:
        sizes.append(tuple(edge // step for edge, step in zip(sizes[-1], stride, strict=True)))
    total = num_classes * math.prod(sizes[0])
    for level, size in enumerate(sizes):
        features = min(BASE_FEATURES * 2**level, MAX_FEATURES)
        maps = 2 if level == len(sizes) - 1 else 2 + 3
        total += maps * features * math.prod(size)
    return total


def fit_patch(
    spacing: Sequence[float], median_shape: Sequence[float], num_classes: int, memory_gb: float
) -> tuple[Triple, Strides]:
    """The largest patch whose feature maps fit the memory at batch size 2, and its strides.

    The patch starts with equal edges in mm and 256^3 voxels, cut to the median shape. Then, until it fits, the axis
    that covers most of the median shape is shortened. Raises InputError if even the smallest patch does not fit.
    """
    inverse = 1 / np.asarray(spacing, dtype=float)
    start = inverse * (START_EDGE**3 / inverse.prod()) ** (1 / 3)
    wanted = [min(round(edge), limit) for edge, limit in zip(start, median_shape, strict=True)]
    strides = pooling_strides(spacing, wanted)
    patch = round_up(wanted, total_stride(strides))
    limit_size = REFERENCE_SIZE * memory_gb / REFERENCE_GB
    while feature_map_size(patch, strides, num_classes) > limit_size:
        # If shares are equal, the last axis is shortened.
        axis = max(range(3), key=lambda index: (patch[index] / median_shape[index], index))
        patch, strides = _shorten(spacing, patch, strides, axis, memory_gb)
    return patch, strides


def fit_batch(patch_size: Triple, strides: Strides, num_classes: int, memory_gb: float, dataset_voxels: float) -> int:
    """Batch size that fills the memory, covers at most 5 % of the dataset's voxels, and is at least 2."""
    size = feature_map_size(patch_size, strides, num_classes)
    fitting = round(REFERENCE_SIZE * memory_gb / REFERENCE_GB / size * REFERENCE_BATCH)
    covering = round(dataset_voxels * 0.05 / math.prod(patch_size))
    return max(min(fitting, covering), REFERENCE_BATCH)


def _shorten(
    spacing: Sequence[float], patch: Triple, strides: Strides, axis: int, memory_gb: float
) -> tuple[Triple, Strides]:
    """Shorten one axis by the smallest step that its next shape allows.

    A patch of 256 halved 6 times would step by 64 to 192. It would miss 224, which has only 5 halvings and steps of
    32. So the step is that of the patch after a full step.
    """
    trial = list(patch)
    trial[axis] -= total_stride(strides)[axis]
    step = total_stride(pooling_strides(spacing, trial))[axis]
    shorter = list(patch)
    shorter[axis] -= step
    if shorter[axis] < 1:
        raise InputError(f"memory_gb is {memory_gb:g}: no patch fits, a larger value expected")
    new_strides = pooling_strides(spacing, shorter)
    return round_up(shorter, total_stride(new_strides)), new_strides


def _triple(values: Iterable[int]) -> Triple:
    depth, height, width = values
    return depth, height, width
