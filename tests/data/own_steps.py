"""Augmentation steps of one's own, which recipes of tests name."""

from __future__ import annotations

from typing import Any

import torch

from e2enet.data.augmentation.step import AugmentationStep, Patch, Triple, uniform

PATCH = (6, 8, 10)
HERE = __name__


class Offset(AugmentationStep):
    """Add a drawn number to each channel, and record the patches."""

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        self.low, self.high = low, high
        self.seen: list[Patch] = []

    def draw(self, channels: int) -> list[float]:
        return [uniform(self.low, self.high) for _ in range(channels)]

    def apply(self, patch: Patch, drawn: list[float]) -> Patch:
        self.seen.append(patch._replace(affine=patch.affine.copy()))
        return patch._replace(image=patch.image + torch.tensor(drawn).view(-1, 1, 1, 1))


class MiddleOfMore(AugmentationStep):
    """Read two more voxels on each side, and return the middle."""

    def draw(self, channels: int) -> int:
        return 2

    def box_size(self, drawn: int, size: Triple) -> Triple:
        d, h, w = (edge + 2 * drawn for edge in size)
        return d, h, w

    def apply(self, patch: Patch, drawn: int) -> Patch:
        middle = (..., *(slice(drawn, drawn + edge) for edge in patch.size))
        return patch._replace(image=patch.image[middle], label=patch.label[middle])


class Wrong(AugmentationStep):
    """Return a wrong result of the given kind."""

    def __init__(self, how: str) -> None:
        self.how = how

    def draw(self, channels: int) -> Any:
        return (lambda: 0) if self.how == "unpicklable" else 1

    def apply(self, patch: Patch, drawn: Any) -> Patch:
        if self.how == "raises":
            raise ZeroDivisionError("nothing left")
        return (
            patch._replace(label=patch.label.float()) if self.how == "floats" else patch._replace(image=patch.image[1:])
        )
