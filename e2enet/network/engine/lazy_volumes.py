"""Volumes between the engine's layers: where their channels lie, and the norm and activation still to be applied."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from e2enet.network.engine import checks
from e2enet.network.engine.vector_code import LANES
from e2enet.network.layers import Triple

# An instance norm with leaky ReLU: weight (C,), bias (C,), eps and the negative slope.
Norm = tuple[np.ndarray, np.ndarray, float, float]


@dataclass
class LazyVolumes:
    """Volumes (H, W, D), one per channel, and what their readers apply: activation(values * scale + offset).

    addresses: (C,) int64. affine: (C, 3) float32: scale, offset and negative slope of the activation (1: none).
    size: (D, H, W). memory: the arrays that the addresses lie in. moments: (C, 2) float64, mean and 1 / standard
    deviation of each channel, if an instance norm is to be applied.
    """

    addresses: np.ndarray
    affine: np.ndarray
    size: Triple
    memory: tuple[np.ndarray, ...]
    moments: np.ndarray | None = None

    @classmethod
    def of(cls, values: np.ndarray, nonzero: np.ndarray | None = None) -> LazyVolumes:
        """Return the channels of (C, H, W, D), to be read as they are.

        With `nonzero` (bool), `values` holds the channels for which it is True. The others are zero everywhere and
        share one volume.
        """
        rows = values.ctypes.data + values.strides[0] * np.arange(len(values), dtype=np.int64)
        memory: tuple[np.ndarray, ...] = (values,)
        if nonzero is not None and not nonzero.all():
            memory = values, np.zeros(values.shape[1:], np.float32)
            addresses = np.full(len(nonzero), memory[1].ctypes.data, np.int64)
            addresses[nonzero] = rows
            rows = addresses
        _, height, width, depth = values.shape
        return cls(rows, unchanged(len(rows)), (depth, height, width), memory)

    def normalise(
        self, mean: np.ndarray, variance: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float, slope: float
    ) -> None:
        """Let readers apply instance norm and leaky ReLU; all arrays (C,)."""
        self.moments = np.stack([mean, 1 / np.sqrt(variance + eps)], axis=1)
        scale = weight * self.moments[:, 1]
        self.affine[:, 0], self.affine[:, 1], self.affine[:, 2] = scale, bias - mean * scale, slope

    def stacked(self) -> np.ndarray:
        """Return all channels as one (C, H, W, D), before norm and activation; uncopied if they lie so."""
        whole = self.memory[0]
        return whole if len(whole) == len(self.addresses) else np.stack(list(self.volumes()))

    def places(self) -> np.ndarray:
        """Return each channel's index in `memory[0]`, (C,) int64; -1 for channels that are zero everywhere."""
        if checks.ON:
            checks.require_volumes("source", self.addresses, [self])
        whole = self.memory[0]
        places = (self.addresses - whole.ctypes.data) // (4 * prod(self.size))
        return np.where((places >= 0) & (places < len(whole)), places, -1)

    def volumes(self) -> Iterator[np.ndarray]:
        """Yield (H, W, D) of every channel, before norm and activation."""
        if checks.ON:
            checks.require_volumes("source", self.addresses, [self])
        depth, height, width = self.size
        for address in self.addresses.tolist():
            first = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            yield np.ctypeslib.as_array(first, (height, width, depth))


def unchanged(channels: int) -> np.ndarray:
    """Return the `affine` of channels that are read as they are."""
    return np.tile(np.array([1, 0, 1], np.float32), (channels, 1))


def empty_volume(shape: tuple[int, ...]) -> np.ndarray:
    """Return uninitialised float32 memory that is aligned to vectors."""
    if checks.ON:
        return checks.guarded_volume(shape)
    count = int(np.prod(shape))
    whole = np.empty(count + LANES, np.float32)
    start = -(whole.ctypes.data // 4) % LANES
    return whole[start : start + count].reshape(shape)
