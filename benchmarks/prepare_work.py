"""The cases that `benchmarks.prepare` prepares: generated bodies of smooth organs, as NIfTI files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

CT = {"scheme": "ct", "lower": -160.0, "upper": 240.0, "mean": 60.0, "std": 80.0}
ZSCORE = {"scheme": "zscore", "nonzero": False}


@dataclass(frozen=True)
class Work:
    """A case: shape and spacing in mm of the file along (D, H, W), `labels` with background, and the target spacing."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    target: tuple[float, float, float]
    labels: int
    scheme: dict[str, object]


CASES = {
    "ct": Work((200, 512, 512), (2.5, 0.8, 0.8), (2.0, 0.7, 0.7), 16, CT),
    "ct-as-is": Work((200, 512, 512), (2.5, 0.8, 0.8), (2.5, 0.8, 0.8), 16, CT),
    "ct-isotropic": Work((300, 320, 320), (1.2, 1.2, 1.2), (1.5, 1.0, 1.0), 16, CT),
    "mri": Work((160, 192, 192), (1.2, 1.2, 1.2), (1.0, 1.0, 1.0), 4, ZSCORE),
    "thick-slices": Work((40, 320, 320), (6.0, 1.2, 1.2), (5.0, 1.0, 1.0), 8, CT),
}


def shrunk(work: Work, scale: float) -> Work:
    """Return the case with `scale` times as many voxels per axis."""
    depth, height, width = (max(8, round(edge * scale)) for edge in work.shape)
    return Work((depth, height, width), work.spacing, work.target, work.labels, work.scheme)


def write_case(folder: Path, work: Work) -> None:
    """Write image.nii.gz (int16) and label.nii.gz (uint8) on RAS axes, so that both readers see one grid."""
    rng = np.random.default_rng(0)
    label = draw_organs(work, rng)
    means = np.concatenate([[-100.0], rng.uniform(-20, 180, work.labels - 1)]).astype(np.float32)
    native = np.diag([work.spacing[2], work.spacing[1], work.spacing[0], 1.0])
    image = np.empty(work.shape, dtype=np.int16)
    rows, columns = (np.linspace(-1, 1, edge, dtype=np.float32) for edge in work.shape[1:])
    outside = (rows[:, None] / 0.8) ** 2 + (columns / 0.95) ** 2 > 1
    for plane, values in zip(image, label, strict=True):
        values[outside] = 0
        noisy = means[values] + rng.normal(0, 12, values.shape).astype(np.float32)
        plane[...] = np.where(outside, -1000 + noisy / 10, noisy)
    if work.scheme is ZSCORE:
        image += 1100
    for name, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array.T, native), folder / f"{name}.nii.gz")


def draw_organs(work: Work, rng: np.random.Generator) -> np.ndarray:
    """Return labels (D, H, W) uint8: ellipsoids of 5 to 20 % of the body's width, with wavy surfaces."""
    label = np.zeros(work.shape, dtype=np.uint8)
    axes = [np.linspace(-1, 1, edge, dtype=np.float32) for edge in work.shape]
    for value in range(1, work.labels):
        centre, radii = rng.uniform(-0.55, 0.55, 3), rng.uniform(0.12, 0.38, 3)
        box = tuple(
            slice(*np.searchsorted(axis, (middle - 1.2 * radius, middle + 1.2 * radius)))
            for axis, middle, radius in zip(axes, centre, radii, strict=True)
        )
        depth, row, column = np.meshgrid(*[axis[part] for axis, part in zip(axes, box, strict=True)], indexing="ij")
        offsets = [(place - c) / r for place, c, r in zip((depth, row, column), centre, radii, strict=True)]
        wave = 1 + 0.15 * np.sin(5 * offsets[0] + value) * np.cos(4 * offsets[1]) + 0.1 * np.sin(6 * offsets[2])
        label[box][sum(offset**2 for offset in offsets) < wave] = value
    return label
