"""Small scans for look-alike datasets: organs or a brain tumour, recognisable by intensity and position.

Arrays are in RAS index order: the first axis counts to the right, the second to the front, the third upward.
The scans need not look realistic. They must be read, prepared and learned in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Scan:
    """`channels` float32 (C, X, Y, Z) and `label` uint8 (X, Y, Z), in RAS index order."""

    channels: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Contrast:
    """Intensities of one channel: outside the body, of the body, the step per label, and the noise's deviation."""

    outside: float
    body: float
    step: float
    noise: float


# CT in Hounsfield units: air, soft tissue, organs from 90 HU on. Both MRI contrasts are arbitrary units.
CT = Contrast(-1000.0, 20.0, 30.0, 6.0)
MRI_BRIGHT = Contrast(0.0, 200.0, 60.0, 12.0)
MRI_DARK = Contrast(0.0, 1100.0, -60.0, 12.0)

BRAIN = "brain"
# Tissue -> intensity in FLAIR, T1, T1 with contrast agent, T2.
TUMOUR_CONTRASTS: Mapping[str, Sequence[float]] = {
    BRAIN: (300.0, 500.0, 500.0, 400.0),
    "edema": (700.0, 380.0, 400.0, 750.0),
    "core": (380.0, 250.0, 260.0, 850.0),
    "enhancing": (550.0, 450.0, 900.0, 600.0),
}


def draw_organs(
    rng: np.random.Generator,
    shape: Shape,
    num_labels: int,
    contrasts: Sequence[Contrast],
    absent: Collection[int] = (),
) -> Scan:
    """Draw ellipsoids labelled 1..num_labels in a body, each in its own cell of a lattice in the axial plane.

    Labels in `absent` are left out, like an organ that was removed.
    """
    grid = np.stack(np.meshgrid(*(np.arange(size, dtype=np.float32) for size in shape), indexing="ij"))
    middle = (np.array(shape) - 1) / 2
    outline = ((grid[0] - middle[0]) / (0.5 * shape[0])) ** 2 + ((grid[1] - middle[1]) / (0.5 * shape[1])) ** 2
    body = outline <= 1.4  # the image cuts the body, as a field of view does
    cells = math.ceil(math.sqrt(num_labels))
    cell = 0.76 * np.array(shape[:2]) / cells
    label = np.zeros(shape, np.uint8)
    for value in range(1, num_labels + 1):
        column, row = (value - 1) % cells, (value - 1) // cells
        in_plane = 0.12 * np.array(shape[:2]) + (np.array((column, row)) + 0.5) * cell
        height = shape[2] * (0.4 if value % 2 else 0.6)
        centre = np.array((*in_plane, height)) + rng.uniform(-0.5, 0.5, 3)
        semi_axes = np.array((*(0.42 * cell), 0.28 * shape[2])) * rng.uniform(0.85, 1.0, 3)
        if value not in absent:
            label[_ellipsoid(grid, centre, semi_axes)] = value
    channels = []
    for contrast in contrasts:
        image = np.where(body, contrast.body, contrast.outside)
        image = np.where(label > 0, contrast.body + 40.0 + contrast.step * label, image)
        channels.append(image + rng.normal(0, contrast.noise, shape))
    return Scan(np.stack(channels).astype(np.float32), label)


def draw_tumour(
    rng: np.random.Generator, shape: Shape, values: Mapping[str, int], absent: Collection[str] = ()
) -> Scan:
    """Draw a brain with a tumour in four modalities, in the order of TUMOUR_CONTRASTS.

    An enhancing rim surrounds the core, and edema surrounds the rim. `values` numbers "edema", "core" and
    "enhancing". A tissue in `absent` is replaced by the one around it. Outside the brain everything is 0, as in
    skull-stripped scans.
    """
    grid = np.stack(np.meshgrid(*(np.arange(size, dtype=np.float32) for size in shape), indexing="ij"))
    middle = (np.array(shape) - 1) / 2
    brain = _ellipsoid(grid, middle, 0.46 * np.array(shape))
    centre = middle + rng.uniform(-0.12, 0.12, 3) * shape
    radius = 0.28 * min(shape) * rng.uniform(0.9, 1.1)
    tissues = np.full(shape, BRAIN, dtype=object)
    for tissue, share in (("edema", 1.0), ("enhancing", 0.7), ("core", 0.45)):
        if tissue not in absent:
            tissues[_ellipsoid(grid, centre, radius * share * rng.uniform(0.9, 1.1, 3)) & brain] = tissue
    label = np.zeros(shape, np.uint8)
    for tissue, value in values.items():
        label[tissues == tissue] = value
    channels = np.zeros((4, *shape), np.float32)
    for tissue, intensities in TUMOUR_CONTRASTS.items():
        inside = brain & (tissues == tissue)
        for channel, intensity in zip(channels, intensities, strict=True):
            channel[inside] = intensity
    channels[:, brain] += rng.normal(0, 15.0, (4, int(brain.sum())))
    return Scan(np.where(brain, np.maximum(np.rint(channels), 1), 0).astype(np.float32), label)


def _ellipsoid(grid: np.ndarray, centre: np.ndarray, semi_axes: np.ndarray) -> np.ndarray:
    """Return a mask of the inside of an ellipsoid on a grid (3, X, Y, Z); centre and semi-axes in voxels."""
    offsets = (grid - centre.reshape(3, 1, 1, 1)) / semi_axes.reshape(3, 1, 1, 1)
    return (offsets**2).sum(axis=0) <= 1
