"""Changes of intensity, each a function of one channel, and the TorchIO transform that applies them.

The images are normalised (about zero mean, unit variance), so every function handles negative values.
Ranges and order are chosen in `augmentation`; the recipe is nnU-Net's (Isensee et al. 2021, supplement 4;
the spec's section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchio as tio
from scipy import ndimage
from torch.nn import functional

ChannelFunction = Callable[[np.ndarray, float], np.ndarray]


class RandomPerChannel(tio.transforms.augmentation.RandomTransform, tio.transforms.IntensityTransform):
    """Apply `function(channel, strength)` to each channel, with a strength of its own.

    Args:
        function: Maps a channel, float32 (D, H, W), and a strength to the changed channel.
        strength: Range that the strength is drawn from.
        channel_p: Probability for each channel, once the transform itself is drawn (`p`).
        halves: Draw below and above 1 equally often, as nnU-Net does for factors whose range is not
            symmetric around 1.
        **kwargs: `p` and others of torchio.Transform.
    """

    def __init__(
        self,
        function: ChannelFunction,
        strength: tuple[float, float],
        *,
        channel_p: float = 1.0,
        halves: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.function = function
        self.strength = strength
        self.channel_p = channel_p
        self.halves = halves

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Change the channels of every intensity image of the subject."""
        for image in self.get_images(subject):
            channels = [
                self.function(channel, self._draw()) if torch.rand(1).item() < self.channel_p else channel
                for channel in image.numpy()
            ]
            image.set_data(torch.from_numpy(np.stack(channels)))
        return subject

    def _draw(self) -> float:
        low, high = self.strength
        if self.halves:
            low, high = (low, 1.0) if torch.rand(1).item() < 0.5 else (1.0, high)
        return self.sample_uniform(low, high)


def multiply(channel: np.ndarray, factor: float) -> np.ndarray:
    """Brightness: every value times the factor."""
    return channel * np.float32(factor)


def scale_contrast(channel: np.ndarray, factor: float) -> np.ndarray:
    """Spread the values around their mean by the factor, clipped to the range they had before."""
    mean = channel.mean()
    return np.clip((channel - mean) * np.float32(factor) + mean, channel.min(), channel.max())


def blur(channel: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; sigma in voxels."""
    return ndimage.gaussian_filter(channel, sigma)


def lower_resolution(channel: np.ndarray, zoom: float) -> np.ndarray:
    """Simulate a coarser scan: nearest-neighbour sampling to `zoom` times the size, then back linearly.

    nnU-Net goes back by cubic splines; linear is several times faster and the picture is as coarse.
    """
    coarse = [max(1, round(size * zoom)) for size in channel.shape]
    small = functional.interpolate(torch.from_numpy(channel)[None, None], size=coarse, mode="nearest-exact")
    back = functional.interpolate(small, size=channel.shape, mode="trilinear", align_corners=False)
    return back[0, 0].numpy()


def lower_resolution_in_plane(channel: np.ndarray, zoom: float) -> np.ndarray:
    """`lower_resolution` within the slices (H, W), for patches that are coarse in depth already."""
    coarse = [max(1, round(size * zoom)) for size in channel.shape[1:]]
    small = functional.interpolate(torch.from_numpy(channel)[:, None], size=coarse, mode="nearest-exact")
    back = functional.interpolate(small, size=channel.shape[1:], mode="bilinear", align_corners=False)
    return back[:, 0].numpy()


def change_gamma(channel: np.ndarray, gamma: float) -> np.ndarray:
    """Raise the channel, scaled to 0..1, to the power gamma; then restore its mean and standard deviation."""
    low, high = channel.min(), channel.max()
    if high - low < 1e-6:
        return channel
    powered = ((channel - low) / (high - low)) ** np.float32(gamma)
    return (powered - powered.mean()) * (channel.std() / powered.std()) + channel.mean()


def change_gamma_inverted(channel: np.ndarray, gamma: float) -> np.ndarray:
    """`change_gamma` of the negative image: bends the bright end instead of the dark one."""
    return -change_gamma(-channel, gamma)
