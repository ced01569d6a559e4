"""One phantom case: organs in a body, on a grid with thick slices.

The intensities of neighbouring organs overlap (means are 70 apart, with noise of 30 and a bias field of 6 %), so
intensity, shape and surroundings must be used together. The last two organs are cones along the slice axis, one
growing upward and one downward. Both consist of the same discs at the same intensity, so a single slice cannot tell
them apart. The slice above or below can, since the radius changes by one voxel per slice. A network without depth
context cannot learn them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from e2enet.common.errors import InputError

# cone_up widens upward (towards higher slices), cone_down downward.
ORGANS = ("ellipsoid", "sphere", "tube", "cone_up", "cone_down")
MINIMUM_SHAPE = (32, 32, 12)

AIR, BODY = 60.0, 250.0
ORGAN_INTENSITY = {"ellipsoid": 370.0, "sphere": 440.0, "tube": 510.0, "cone_up": 580.0, "cone_down": 580.0}
NOISE = 30.0
BIAS = 0.06
MAX_DRAWS = 200
SMALLEST_DISC = 3  # voxels; the radius of a cone's tip

Shape = tuple[int, int, int]
Grid = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw_case(
    rng: np.random.Generator, shape: Shape, spacing: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one case around the mean shape (voxels) and spacing (mm), both in file axes.

    Returns the image, int16 (X, Y, Z), the label, uint8 (X, Y, Z) with 1 to 5 in the order of ORGANS, and the
    affine (4, 4) in mm. Raises InputError if the organs do not fit into the shape.
    """
    x, y, z = shape
    size = (x + int(rng.integers(-2, 3)), y + int(rng.integers(-2, 3)), z + int(rng.integers(-1, 2)))
    case_spacing = np.array(spacing) * (1.0, 1.0, rng.uniform(0.95, 1.05))
    case_spacing[2] = max(case_spacing)  # the cones stand along z, which must stay the depth axis
    for _ in range(MAX_DRAWS):  # if an organ finds no free place, the whole draw is dropped
        label = _draw_organs(rng, size)
        if label is not None:
            return _draw_image(rng, label), label, _draw_affine(rng, size, case_spacing)
    raise InputError(f"phantom shape {shape}: no room for the organs in {MAX_DRAWS} attempts; choose a larger shape")


def cone_radii(size: Shape) -> np.ndarray:
    """Disc radii (voxels) of a cone in an image of this size (X, Y, Z), tip first: 3..10 for 64 x 64 x 24."""
    widest = 0.17 * min(size[0], size[1])
    return SMALLEST_DISC + np.arange(np.clip(min(size[2] // 3, widest - SMALLEST_DISC + 1), 4, 8).astype(int))


def _draw_organs(rng: np.random.Generator, size: Shape) -> np.ndarray | None:
    """Label map of organs that neither touch one another nor leave the body; None if one found no place."""
    grid: Grid = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in size), indexing="ij")  # type: ignore[assignment]
    unit = min(size[0], size[1]) / 64  # organ sizes below are voxels of a 64 x 64 slice
    depth = size[2] / 24
    tip_first = cone_radii(size)
    body = _body(size, grid, margin=2.0)
    draw: dict[str, Callable[[], np.ndarray]] = {
        "tube": lambda: _tube(rng, grid, radius=rng.uniform(4.5, 5.5) * unit, wander=3 * unit),
        "ellipsoid": lambda: _ellipsoid(
            rng, grid, rng.uniform((11 * unit, 8 * unit, 5 * depth), (14 * unit, 10 * unit, 7 * depth))
        ),
        "cone_up": lambda: _cone(rng, grid, tip_first),
        "cone_down": lambda: _cone(rng, grid, tip_first[::-1]),
        "sphere": lambda: _ellipsoid(
            rng, grid, rng.uniform((7.5 * unit, 7.5 * unit, 4 * depth), (9.5 * unit, 9.5 * unit, 5 * depth))
        ),
    }
    label = np.zeros(size, dtype=np.uint8)
    free = body.copy()
    for organ, candidate in draw.items():
        for _ in range(60):
            mask = candidate()
            if not np.any(mask & ~free):
                break
        else:
            return None
        label[mask] = ORGANS.index(organ) + 1
        free &= ~ndimage.binary_dilation(mask)  # one voxel of body stays between organs
    return label


def _body(size: Shape, grid: Grid, margin: float) -> np.ndarray:
    """Elliptic cylinder through every slice, `margin` voxels inside semi-axes of 47 % of the image."""
    outline = [((grid[axis] - (size[axis] - 1) / 2) / (0.47 * size[axis] - margin)) ** 2 for axis in (0, 1)]
    return outline[0] + outline[1] <= 1


def _ellipsoid(rng: np.random.Generator, grid: Grid, semi_axes: np.ndarray) -> np.ndarray:
    """Ellipsoid at a random place, turned at random within the slice; `semi_axes` in voxels."""
    dx, dy, dz = _offsets(rng, grid, half_height=float(semi_axes[2]))
    turn = rng.uniform(0, np.pi)
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    return (along / semi_axes[0]) ** 2 + (across / semi_axes[1]) ** 2 + (dz / semi_axes[2]) ** 2 <= 1


def _tube(rng: np.random.Generator, grid: Grid, radius: float, wander: float) -> np.ndarray:
    """Tube through every slice whose centre wanders along a sine of amplitude `wander` voxels."""
    dx, dy, _ = _offsets(rng, grid, half_height=0.0)
    phase = rng.uniform(0, 2 * np.pi) + 2 * np.pi * grid[2] / grid[2].shape[2]
    return (dx + wander * np.sin(phase)) ** 2 + (dy + wander * np.cos(phase)) ** 2 <= radius**2


def _cone(rng: np.random.Generator, grid: Grid, radii: np.ndarray) -> np.ndarray:
    """Stack of discs, one radius (voxels) per slice from the lowest slice on, at a random place."""
    num_slices = grid[2].shape[2]
    first = int(rng.integers(1, num_slices - len(radii)))  # a slice without the cone stays at both ends
    radius = np.zeros(num_slices, dtype=np.float32)
    radius[first : first + len(radii)] = radii
    dx, dy, _ = _offsets(rng, grid, half_height=0.0)
    return (dx**2 + dy**2 <= radius**2) & (radius > 0)


def _offsets(rng: np.random.Generator, grid: Grid, half_height: float) -> Grid:
    """Voxel offsets from a random centre, in z at least `half_height` from the first and last slice."""
    size = grid[0].shape
    low = (0.15 * size[0], 0.15 * size[1], half_height)
    centre = rng.uniform(low, (0.85 * size[0], 0.85 * size[1], size[2] - 1 - half_height))
    return grid[0] - centre[0], grid[1] - centre[1], grid[2] - centre[2]


def _draw_image(rng: np.random.Generator, label: np.ndarray) -> np.ndarray:
    """Intensities int16 (X, Y, Z) of a label map: organ means that vary by case, blur, bias and noise."""
    size: Shape = label.shape
    grid: Grid = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in size), indexing="ij")  # type: ignore[assignment]
    means = {organ: mean + rng.normal(0, 8) for organ, mean in ORGAN_INTENSITY.items()}
    means["cone_down"] = means["cone_up"]
    image = np.where(_body(size, grid, margin=0.0), BODY, AIR)
    for number, organ in enumerate(ORGANS, start=1):
        image[label == number] = means[organ]
    # No blur across slices: a disc would otherwise show its neighbour's radius.
    image = ndimage.gaussian_filter(image, sigma=(0.6, 0.6, 0))
    slope = rng.normal(size=3)
    slope *= BIAS / np.abs(slope).sum()  # the bias field stays within 1 +- BIAS
    bias = 1 + sum(slope[axis] * (2 * grid[axis] / (size[axis] - 1) - 1) for axis in range(3))
    return np.clip(np.rint(image * bias + rng.normal(0, NOISE, size)), 0, None).astype(np.int16)


def _draw_affine(rng: np.random.Generator, size: Shape, spacing: np.ndarray) -> np.ndarray:
    """Voxel-to-world matrix in mm (NIfTI, RAS+).

    x is stored right to left and y front to back, a few degrees oblique within the slice.
    """
    turn = np.deg2rad(rng.uniform(-5, 5))
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(spacing * (-1, -1, 1))
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(size) - 1) / 2) + rng.uniform(-20, 20, 3)
    return affine
