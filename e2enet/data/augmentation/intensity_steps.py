"""Intensity changes as steps of a recipe: how often and how strongly each is applied.

The defaults are neutral; nnU-Net's numbers are in conf/augmentation/nnunet.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from e2enet.data.augmentation import intensity
from e2enet.data.augmentation.step import AugmentationStep, Patch, Triple, is_anisotropic, require_range, uniform

Strengths = list[float | None]


class IntensityStep(AugmentationStep):
    """A change of each channel by a random strength. Subclasses define the change.

    Args:
        p: Probability that the step is drawn for a patch.
        strength: Range [low, high] of each channel's strength.
        channel_p: Probability for each channel of such a patch.
        halves: Draw below and above 1 equally often, as nnU-Net does for factors whose range is not symmetric around 1.
    """

    def __init__(self, p: float, strength: Sequence[float], channel_p: float = 1.0, halves: bool = False) -> None:
        self.p = p
        self.strength = require_range("strength", strength, around=1.0 if halves else None)
        self.channel_p = channel_p
        self.halves = halves

    def change(self, rows: Tensor, strengths: Sequence[float]) -> None:
        """Change channels float32 (N, D, H, W), of one patch or many, in place, each by its strength."""
        raise NotImplementedError

    def draw(self, channels: int) -> Strengths | None:
        """Return each channel's strength, None for an unchanged channel; None if the step is not drawn."""
        if uniform() >= self.p:
            return None
        return [self._draw_strength() if uniform() < self.channel_p else None for _ in range(channels)]

    def apply(self, patch: Patch, drawn: Strengths) -> Patch:
        """Change the channels that have a strength."""
        change_rows(patch.image, drawn, self)
        return patch

    def _draw_strength(self) -> float:
        low, high = self.strength
        if self.halves:
            low, high = (low, 1.0) if uniform() < 0.5 else (1.0, high)
        return uniform(low, high)


class Blur(IntensityStep):
    """Gaussian blur; `strength` is sigma in voxels, > 0."""

    def change(self, rows: Tensor, strengths: Sequence[float]) -> None:
        """See `intensity.blur`."""
        intensity.blur(rows, strengths)


class Brightness(IntensityStep):
    """Every value times `strength`."""

    def change(self, rows: Tensor, strengths: Sequence[float]) -> None:
        """See `intensity.multiply`."""
        intensity.multiply(rows, strengths)


class Contrast(IntensityStep):
    """Values spread around their mean by `strength`, clipped to the range that they had."""

    def change(self, rows: Tensor, strengths: Sequence[float]) -> None:
        """See `intensity.scale_contrast`."""
        intensity.scale_contrast(rows, strengths)


class LowResolution(IntensityStep):
    """A simulated coarser scan: resampled to `strength` (> 0) times the size and back.

    Args:
        p, strength, channel_p, halves: See `IntensityStep`.
        patch_size: Voxels (D, H, W).
        anisotropy: A patch more than this many times as wide as deep keeps its resolution in depth (nnU-Net: 3).
    """

    def __init__(
        self,
        p: float,
        strength: Sequence[float],
        patch_size: Triple,
        channel_p: float = 1.0,
        halves: bool = False,
        anisotropy: float = 3.0,
    ) -> None:
        super().__init__(p, strength, channel_p, halves)
        self.in_plane = is_anisotropic(patch_size, anisotropy)

    def change(self, rows: Tensor, strengths: Sequence[float]) -> None:
        """See `intensity.lower_resolution`."""
        lower = intensity.lower_resolution_in_plane if self.in_plane else intensity.lower_resolution
        lower(rows, strengths)


class Gamma(IntensityStep):
    """Values, scaled to 0..1, to the power `strength`; their mean and deviation are restored.

    Args:
        p, strength, channel_p, halves: See `IntensityStep`.
        inverted: Change the negative image, which bends the bright end instead of the dark one.
    """

    def __init__(
        self,
        p: float,
        strength: Sequence[float],
        channel_p: float = 1.0,
        halves: bool = False,
        inverted: bool = False,
    ) -> None:
        super().__init__(p, strength, channel_p, halves)
        self.inverted = inverted

    def change(self, rows: Tensor, strengths: Sequence[float]) -> None:
        """See `intensity.change_gamma`."""
        change = intensity.change_gamma_inverted if self.inverted else intensity.change_gamma
        change(rows, strengths)


class NoiseDraw(NamedTuple):
    """Standard deviation of the noise in every channel, and the seed of its generator."""

    deviation: float
    seed: int


class Noise(AugmentationStep):
    """Gaussian noise: one standard deviation per patch, independent noise in each channel.

    Args:
        p: Probability for a patch.
        deviation: Range [low, high] of the standard deviation. (nnU-Net calls its values variances, but uses them as
            standard deviations, as here.)
    """

    def __init__(self, p: float, deviation: Sequence[float]) -> None:
        self.p = p
        self.deviation = require_range("deviation", deviation)

    def draw(self, channels: int) -> NoiseDraw | None:
        """Draw deviation and seed. The seed is always drawn, so that patches stay as in earlier versions."""
        deviation = uniform(*self.deviation) if uniform() < self.p else 0.0
        seed = int(torch.randint(2**62, (1,)))
        return NoiseDraw(deviation, seed) if deviation else None

    def apply(self, patch: Patch, drawn: NoiseDraw) -> Patch:
        """Add noise from a generator of the image's device. A GPU's numbers differ from a CPU's."""
        deviation, seed = drawn
        generator = torch.Generator(patch.image.device).manual_seed(seed)
        patch.image.add_(torch.empty_like(patch.image).normal_(0, deviation, generator=generator))
        return patch


def change_rows(rows: Tensor, strengths: Sequence[float | None], step: IntensityStep) -> None:
    """Change the rows (N, D, H, W) that have a strength, all at once."""
    chosen = [(number, value) for number, value in enumerate(strengths) if value is not None]
    if not chosen:
        return
    numbers, values = zip(*chosen, strict=True)
    if numbers[-1] - numbers[0] + 1 == len(numbers):  # consecutive rows are changed in place
        step.change(rows[numbers[0] : numbers[-1] + 1], values)
        return
    index = torch.tensor(numbers).to(rows.device, non_blocking=True)
    selected = rows.index_select(0, index)
    step.change(selected, values)
    rows.index_copy_(0, index, selected)
