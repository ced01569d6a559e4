"""Draw the figures of docs/augmentation.md: python docs/figures/draw_augmentation.py [FOLDER].

A generated phantom goes through the project's own augmentation, from fixed seeds.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio as tio
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from e2enet.data.augmentation.intensity_steps import NoiseDraw
from e2enet.data.augmentation.recipe import Augmentation, Draw, build_augmentation
from e2enet.data.augmentation.spatial import rotation_matrix
from e2enet.data.loaders.patches import crop_subject, frame_affine
from e2enet.data.synthetic.phantom_anatomy import ORGANS, draw_case
from e2enet.inference.contours import slice_view

PATCH = (40, 112, 112)
SPACING = (3.0, 1.0, 1.0)
NOTHING = Draw({})
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00")
WINDOW = (-2.6, 5.2)  # normalised intensity, black and white
INK, PAPER = "#1d2530", "#ffffff"
TRANSFORMS: dict[str, dict[str, Any]] = {
    "RandomBiasField": {"coefficients": 0.6},
    "RandomGhosting": {"axes": [1], "intensity": 2.0},
}
DPI = 110
SEED = 4


def main(folder: Path) -> list[Path]:
    """Write every figure into the folder and return their paths."""
    paths = []
    for name, figure in (("augmentation_steps", steps()), ("augmentation_samples", samples())):
        FigureCanvasAgg(figure)
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=DPI, facecolor=PAPER, metadata={"Software": None})
    return paths


def steps() -> Figure:
    """Draw the same patch after each step alone, at the end of its range, with histograms below."""
    augmentation = build_augmentation(PATCH, (0, 1, 2))
    turn = rotation_matrix(np.deg2rad([30, 0, 0])).tolist()
    shown = {
        "the patch as it is": NOTHING,
        "rotation by 30° (about depth)": Draw({"spatial": turn}),
        "scale 0.7": Draw({"spatial": (0.7 * np.eye(3)).tolist()}),
        "scale 1.4": Draw({"spatial": (1.4 * np.eye(3)).tolist()}),
        "mirrored along H": Draw({"mirror": (1,)}),
        "noise of deviation 0.1": Draw({"noise": NoiseDraw(0.1, 0)}),
        "blur, sigma 1 voxel": Draw({"blur": [1.0]}),
        "low resolution, zoom 0.5": Draw({"low_resolution": [0.5]}),
        "brightness x 1.25": Draw({"brightness": [1.25]}),
        "contrast x 0.75": Draw({"contrast": [0.75]}),
        "gamma 1.5": Draw({"gamma": [1.5]}),
        "gamma 1.5, inverted": Draw({"gamma_inverted": [1.5]}),
    }
    figure = Figure(figsize=(11.2, 11.6))
    plain = augment(augmentation, NOTHING)[0]
    for position, (title, draw) in enumerate(shown.items()):
        row, column = divmod(position, 4)
        left, bottom = 0.012 + 0.248 * column, 1 - 0.333 * (row + 1)
        image, label = augment(augmentation, draw)
        axes = figure.add_axes((left, bottom + 0.075, 0.235, 0.227))
        draw_slice(axes, image, label)
        axes.set_title(title, fontsize=11, color=INK, pad=5)
        draw_values(figure.add_axes((left, bottom + 0.022, 0.235, 0.046)), plain, image)
    return figure


def samples() -> Figure:
    """Draw six samples of the whole recipe that change the patch, and two TorchIO transforms, each alone."""
    augmentation = build_augmentation(PATCH, (1, 2))
    figure = Figure(figsize=(11.2, 6.2))
    with torch.random.fork_rng():
        torch.manual_seed(8)
        draws = [draw for draw in (augmentation.draw(channels=1) for _ in range(40)) if describe(draw)][:6]
        shown = {describe(draw): augment(augmentation, draw) for draw in draws}
        for name, options in TRANSFORMS.items():
            alone = build_augmentation(PATCH, (), {"step": {"_target_": f"torchio.{name}", **options}})
            shown[f"torchio.{name}\nalone"] = augment(alone, alone.draw(channels=1))
    for position, (title, (image, label)) in enumerate(shown.items()):
        row, column = divmod(position, 4)
        axes = figure.add_axes((0.012 + 0.248 * column, 0.5 - 0.5 * row + 0.005, 0.235, 0.415))
        draw_slice(axes, image, label)
        axes.set_title(title, fontsize=9, color=INK, pad=4)
    return figure


def augment(augmentation: Augmentation, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label (D, H, W) of the phantom's middle after a draw, made as a training sample is."""
    subject = phantom()
    size = augmentation.box_size(draw)
    start = [(whole - part) // 2 for whole, part in zip(subject.spatial_shape, size, strict=True)]
    box = crop_subject(subject, start, size)
    draw = draw._replace(affine=box["image"].affine.tolist())
    image, label = augmentation.apply([box["image"].data], [box["label"].data[0]], [draw])
    return image[0, 0].numpy(), label[0].numpy()


@cache
def phantom() -> tio.Subject:
    """Return a normalised phantom in the frame."""
    image, label, _ = draw_case(np.random.default_rng(SEED), (168, 168, 60), (1.0, 1.0, 3.0))
    values = np.moveaxis(image, 2, 0).astype(np.float32)
    values = (values - values.mean()) / values.std()
    affine = frame_affine(SPACING, depth_axis=2)
    return tio.Subject(
        image=tio.ScalarImage(tensor=torch.from_numpy(values)[None], affine=affine),
        label=tio.LabelMap(tensor=torch.from_numpy(np.moveaxis(label, 2, 0).copy())[None], affine=affine),
        case="phantom",
    )


def draw_slice(axes: Axes, image: np.ndarray, label: np.ndarray) -> None:
    """Draw the middle slice, as `SliceView` sets, with the outlines of its labels."""
    middle, view = image.shape[0] // 2, slice_view(SPACING, axis=0, depth_axis=2)
    axes.imshow(view.turn(image[middle]), cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], interpolation="nearest")
    for value, colour in enumerate(COLOURS[: len(ORGANS)], start=1):
        inside = view.turn(label[middle] == value)
        if inside.any():
            axes.contour(inside, levels=[0.5], colors=[colour], linewidths=1.3)
    axes.set_axis_off()


def draw_values(axes: Axes, plain: np.ndarray, image: np.ndarray) -> None:
    """Draw the histogram of the patch's values, filled, and that of the unchanged patch as a line."""
    bins: Any = np.linspace(*WINDOW, 61)
    axes.hist(image.ravel(), bins, color="#9db7cc")
    axes.hist(plain.ravel(), bins, histtype="step", color=INK, linewidth=0.9)
    axes.set_xlim(bins[0], bins[-1])
    axes.set_yscale("log")
    axes.set_yticks([])
    axes.minorticks_off()
    axes.set_xticks([-2, 0, 2, 4])
    axes.tick_params(labelsize=8, colors=INK, length=2, pad=1)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)


def describe(draw: Draw) -> str:
    """Return what a draw does, two steps per line; empty if it does nothing."""
    parts, drawn = [], dict(draw.drawn)
    if "spatial" in drawn:
        matrix = np.array(drawn.pop("spatial"))
        scale = np.cbrt(np.linalg.det(matrix))
        turned = not np.allclose(matrix / scale, np.eye(3))
        parts += (["rotated"] if turned else []) + ([f"scale {scale:.2f}"] if abs(scale - 1) > 1e-3 else [])
    mirrored = drawn.pop("mirror", ())
    parts += [f"noise {drawn.pop('noise').deviation:.2f}"] if "noise" in drawn else []
    for name, strengths in drawn.items():
        parts += [f"{name.replace('_', ' ')} {value:.2f}" for value in strengths if value is not None]
    parts += [f"mirrored {''.join('DHW'[axis] for axis in mirrored)}"] if mirrored else []
    return "\n".join(", ".join(parts[first : first + 2]) for first in range(0, len(parts), 2))


if __name__ == "__main__":
    for path in main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent):
        print(path)
