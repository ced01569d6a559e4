"""Volumes between the engine's layers: where their channels lie, and the norm and activation still to be applied."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np

from e2enet.network.engine import checks
from e2enet.network.engine.vector_code import LANES
from e2enet.network.layers import Triple

# An instance norm with leaky ReLU: weight and bias (2, C) float32, eps and the negative slope.
Norm = tuple[np.ndarray, float, float]


@dataclass
class LazyVolumes:
    """Volumes (H, W, D) of a batch, one per sample and channel, and what their readers apply.

    A reader takes activation(values * scale + offset).

    addresses: (B, C) int64. affine: (B, C, 3) float32: scale, offset and negative slope of the activation (1: none).
    size: (D, H, W). memory: the arrays that the addresses lie in, the first one (B, K, H, W, D). moments: (B, C, 2)
    float64, mean and 1 / standard deviation of each channel, if an instance norm is to be applied.
    """

    addresses: np.ndarray
    affine: np.ndarray
    size: Triple
    memory: tuple[np.ndarray, ...]
    moments: np.ndarray | None = None

    @classmethod
    def of(cls, values: np.ndarray, nonzero: np.ndarray | None = None, affine: np.ndarray | None = None) -> LazyVolumes:
        """Return the channels of (B, C, H, W, D), to be read with `affine`, or as they are.

        With `nonzero` (bool), `values` holds the channels for which it is True. The others are zero everywhere and
        share one volume.
        """
        batch, channels, height, width, depth = values.shape
        addresses = _steps(batch, channels, values.strides[:2]) + values.ctypes.data
        memory: tuple[np.ndarray, ...] = (values,)
        if nonzero is not None and channels < len(nonzero):
            memory = values, np.zeros(values.shape[2:], np.float32)
            written, addresses = addresses, np.full((batch, len(nonzero)), memory[1].ctypes.data, np.int64)
            addresses[:, nonzero] = written
        affine = unchanged(*addresses.shape) if affine is None else affine
        return cls(addresses, affine, (depth, height, width), memory)

    def stacked(self) -> np.ndarray:
        """Return all channels as one (B, C, H, W, D), before norm and activation; uncopied if they lie so."""
        whole = self.memory[0]
        if whole.shape[:2] == self.addresses.shape:
            return whole
        depth, height, width = self.size
        return np.stack(list(self.volumes())).reshape(*self.addresses.shape, height, width, depth)

    def places(self) -> np.ndarray:
        """Return each channel's index in the samples of `memory[0]`, (C,) int64; -1 for one that is zero everywhere."""
        if checks.ON:
            checks.require_volumes("source", self.addresses, [self])
        whole = self.memory[0]
        places = (self.addresses[0] - whole.ctypes.data) // (4 * prod(self.size))
        return np.where((places >= 0) & (places < whole.shape[1]), places, -1)

    def volumes(self) -> Iterator[np.ndarray]:
        """Yield (H, W, D) of every channel of the first sample, of the second and so on, before norm and activation."""
        if checks.ON:
            checks.require_volumes("source", self.addresses, [self])
        depth, height, width = self.size
        for address in self.addresses.ravel().tolist():
            first = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            yield np.ctypeslib.as_array(first, (height, width, depth))


@lru_cache(maxsize=256)
def _steps(batch: int, channels: int, strides: tuple[int, int]) -> np.ndarray:
    """Return how far the volumes (B, C) lie behind the first one, in bytes."""
    return strides[0] * np.arange(batch, dtype=np.int64)[:, None] + strides[1] * np.arange(channels, dtype=np.int64)


def unchanged(batch: int, channels: int) -> np.ndarray:
    """Return the `affine` (B, C, 3) of channels that are read as they are."""
    affine = np.ones((batch, channels, 3), np.float32)
    affine[..., 1] = 0
    return affine


def empty_volume(shape: tuple[int, ...]) -> np.ndarray:
    """Return uninitialised float32 memory that is aligned to vectors."""
    if checks.ON:
        return checks.guarded_volume(shape)
    count = prod(shape)
    whole = np.empty(count + LANES, np.float32)
    start = -(whole.ctypes.data // 4) % LANES
    return whole[start : start + count].reshape(shape)
