"""Preprocesses a volume for the network: crop to nonzero, normalise, resample. The way back is `restore`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from e2enet.common.errors import InputError
from e2enet.data.formats.volume import Box, Volume, crop_to_nonzero, nonzero_mask
from e2enet.data.planning.plan import Plan, resampled_shape
from e2enet.data.preparation.resample import resample_image, separate_axis
from e2enet.data.preparation.resample_labels import resample_label

MIN_STD = 1e-8


@dataclass(frozen=True, eq=False)
class Preprocessed:
    """A network's input, and the position of its crop in the frame's grid, which leads back.

    `image` is float32 (C, d, h, w) at the plan's spacing. `crop` is a box in the original grid (D, H, W) of
    `original_shape`. Spacings are in mm. `inside` is the nonzero mask of the crop before resampling, if the plan
    normalises a channel by it.
    """

    image: np.ndarray
    crop: Box
    original_shape: tuple[int, int, int]
    original_spacing: tuple[float, float, float]
    spacing: tuple[float, float, float]
    inside: np.ndarray | None = None

    @property
    def cropped_shape(self) -> tuple[int, int, int]:
        """Voxels of the crop before resampling."""
        depth, height, width = (part.stop - part.start for part in self.crop)
        return depth, height, width


def preprocess(volume: Volume, plan: Plan) -> Preprocessed:
    """Crop, normalise and resample an image in the frame of the plan's depth axis; labels are not needed.

    Raises InputError if the image has another number of channels or depth axis than the plan, or is zero
    everywhere.
    """
    if len(volume.array) != len(plan.normalisation):
        raise InputError(f"the image has {len(volume.array)} channels, the plan {len(plan.normalisation)}")
    if volume.geometry.depth_axis != plan.depth_axis:
        raise InputError(
            f"the image was read with depth axis {volume.geometry.depth_axis}, the plan has {plan.depth_axis}"
        )
    box = crop_to_nonzero(volume.array)
    of_all_channels = (slice(None), *box)
    cropped = volume.array[of_all_channels]
    shape = resampled_shape(cropped.shape[1:], volume.spacing, plan.spacing)
    axis = separate_axis(volume.spacing, plan.spacing)
    inside = nonzero_mask(cropped) if plan.masked_channels else None
    channels = []
    for channel, scheme in zip(cropped, plan.normalisation, strict=True):
        # Before resampling, as in nnU-Net: across metal or air a spline would ring far into the organ beside it.
        normalised = channel.copy()
        normalise(normalised, scheme, inside)
        channels.append(normalised if channel.shape == shape else resample_image(normalised, shape, axis))
    image = channels[0][None] if len(channels) == 1 else np.stack(channels)
    depth, height, width = volume.array.shape[1:]
    return Preprocessed(image, box, (depth, height, width), volume.spacing, plan.spacing, inside)


def preprocess_label(label: np.ndarray, prepared: Preprocessed) -> np.ndarray:
    """Crop and resample a label map (D, H, W) of the same image to (d, h, w), as the image was; the dtype stays."""
    _require_shape(label.shape, prepared.original_shape)
    axis = separate_axis(prepared.original_spacing, prepared.spacing)
    return resample_label(label[prepared.crop], prepared.image.shape[1:], axis)


def preprocess_inside(prepared: Preprocessed, label: np.ndarray) -> np.ndarray | None:
    """The nonzero mask resampled like a label, uint8 (d, h, w) of 0 and 1; None if no channel is normalised by it.

    The foreground of `label` (from `preprocess_label`) is inside too, as in nnU-Net.
    """
    if prepared.inside is None:
        return None
    axis = separate_axis(prepared.original_spacing, prepared.spacing)
    inside = resample_label(prepared.inside.view(np.uint8), prepared.image.shape[1:], axis)
    return np.maximum(inside, label > 0)


def normalise(channel: np.ndarray, scheme: Mapping[str, Any], inside: np.ndarray | None = None) -> None:
    """Normalise one channel (D, H, W) in place.

    ct: clip to the dataset's percentiles, subtract its mean, divide by its standard deviation. zscore: use the image's
    own mean and standard deviation; with `nonzero`, use those of the voxels `inside` and set the others to 0. none:
    unchanged.
    """
    if scheme["scheme"] == "ct":
        np.clip(channel, scheme["lower"], scheme["upper"], out=channel)
        channel -= scheme["mean"]
        channel /= max(scheme["std"], MIN_STD)
    elif scheme["scheme"] == "zscore":
        within = inside if scheme["nonzero"] else None
        mean, std = _mean_and_std(channel, within)
        channel -= np.float32(mean)
        channel /= np.float32(max(std, MIN_STD))
        if within is not None:
            channel[~within] = 0
    elif scheme["scheme"] != "none":
        raise InputError(f"normalisation scheme {scheme['scheme']!r}: one of ct, zscore, none expected")


def _require_shape(found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ValueError(f"shape {found}, {expected} expected")


def _mean_and_std(channel: np.ndarray, inside: np.ndarray | None) -> tuple[float, float]:
    """Mean and standard deviation of the voxels inside, in double precision.

    Computed plane by plane: at once they would take the memory of three volumes.
    """
    count = channel.size if inside is None else int(np.count_nonzero(inside))
    masks = [None] * len(channel) if inside is None else inside
    planes = [plane if mask is None else plane[mask] for plane, mask in zip(channel, masks, strict=True)]
    mean = sum(float(plane.sum(dtype=np.float64)) for plane in planes) / max(count, 1)
    square = sum(float(np.square(plane.astype(np.float64) - mean).sum()) for plane in planes) / max(count, 1)
    return mean, math.sqrt(square)
