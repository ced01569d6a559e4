"""The engine's convolution by torch: it multiplies every kernel, active or not, in channels-last memory.

It wins if most kernels are active and volumes are small, as in deep encoder stages. It should win more often on
processors with matrix units for bfloat16 (AMX), which a loop over single kernels cannot use.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from e2enet.network.engine import checks
from e2enet.network.engine.hand_out import run_samples
from e2enet.network.engine.lazy_volumes import LazyVolumes, Norm, empty_volume
from e2enet.network.engine.pending_norm import PendingNorm
from e2enet.network.engine.vector_code import LANES
from e2enet.network.layers import Triple

LARGEST_PART = 2**22  # input values that are laid out for torch at a time


class DenseConvolution:
    """`Convolution` by torch, in float32 or bfloat16. weights: (O, C, depth, height, width), inactive ones 0.

    It takes a few rows of the plane, or a few small samples, at a time, so the input is never laid out as a whole.
    """

    def __init__(
        self,
        weights: np.ndarray,
        shifts: np.ndarray,
        stride: Triple,
        norm: Norm | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.weights = torch.from_numpy(weights).to(dtype, memory_format=torch.channels_last_3d)
        self.shifts, self.stride, self.norm, self.dtype = shifts, stride, norm, dtype

    def __call__(self, sources: Sequence[LazyVolumes]) -> LazyVolumes:
        outputs, channels, *kernel = self.weights.shape
        size, batch = sources[0].size, len(sources[0].addresses)
        depth, height, width = (
            (edge + 2 * (taps // 2) - taps) // step + 1
            for edge, taps, step in zip(size, kernel, self.stride, strict=True)
        )
        values, totals = empty_volume((batch, outputs, height, width, depth)), np.zeros((batch, height, outputs, 2))
        step, taps = self.stride[1], kernel[1]
        row = size[0] * size[2] * channels * step  # input values of a row of outputs
        rows, together = max(1, LARGEST_PART // row), max(1, LARGEST_PART // (row * height))
        for start, first in product(range(0, batch, together), range(0, height, rows)):
            samples, last = range(start, min(start + together, batch)), min(first + rows, height)
            above, read = first * step - taps // 2, (last - 1 - first) * step + taps
            with torch.autocast("cpu", enabled=False):  # autocast would choose the precision itself
                self._write(self._convolve(self._read(sources, samples, above, read)), samples, first, values, totals)
        signal = LazyVolumes.of(values)
        if self.norm is not None:
            PendingNorm(signal, values, totals, self.norm, np.arange(outputs)).finish_from(0)
        return signal

    def _read(self, sources: Sequence[LazyVolumes], samples: range, top: int, rows: int) -> Tensor:
        """Return rows of samples, activated, concatenated and shifted: (B, D, rows, W, C); 0 outside the plane."""
        depth, _, width = sources[0].size
        x = torch.empty((len(samples), depth, rows, width, len(self.shifts)), dtype=self.dtype)
        ends = np.cumsum([source.addresses.shape[1] for source in sources])
        for source, end in zip(sources, ends.tolist(), strict=True):
            _lay_out(source, samples, top, self.shifts[:end], _memory(x))
        return x

    def _convolve(self, x: Tensor) -> Tensor:
        """Convolve (B, D, rows, W, C), which includes the halo above and below, to (B, D, rows, W, O)."""
        depth, _, width = (taps // 2 for taps in self.weights.shape[2:])
        if self.weights.shape[2] == 1:
            chosen = x[:, :: self.stride[0]]
            planes = chosen.flatten(0, 1).permute(0, 3, 1, 2)
            out = F.conv2d(planes, self.weights.squeeze(2), None, self.stride[1:], (0, width)).permute(0, 2, 3, 1)
            return out.unflatten(0, chosen.shape[:2])
        out = F.conv3d(x.permute(0, 4, 1, 2, 3), self.weights, None, self.stride, (depth, 0, width))
        return out.permute(0, 2, 3, 4, 1)

    def _write(self, convolved: Tensor, samples: range, top: int, values: np.ndarray, totals: np.ndarray) -> None:
        from e2enet.network.engine import dense_loops

        take_over, rows = checks.watch(dense_loops.take_over), _memory(convolved.contiguous())

        def take(number: int, *pieces: int) -> None:
            take_over(rows[number], top, values[samples[number]], totals[samples[number]], *pieces)

        run_samples(take, len(samples), rows.shape[2], rows.size)


def _memory(values: Tensor) -> np.ndarray:
    """Return a tensor's memory; numpy has no bfloat16, so its bits are uint16."""
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def _lay_out(source: LazyVolumes, samples: range, top: int, shifts: np.ndarray, x: np.ndarray) -> None:
    """Write a source's rows of samples into `x`. shifts: of all channels up to the source's last one."""
    from e2enet.network.engine import dense_loops

    count, places, (depth, _, width) = source.addresses.shape[1], source.places(), source.size
    columns = max(1, min(width, dense_loops.BLOCK_VALUES // (LANES * depth)))
    loop, start = checks.watch(dense_loops.lay_out), len(shifts) - count

    def lay_out(number: int, first: int, last: int) -> None:
        own = source.memory[0][samples[number]], places, source.affine[samples[number]], shifts[start:], start
        loop(columns, top, *own, x[number], first, last)

    pieces = x.shape[2] * ceil(width / columns)
    run_samples(lay_out, len(samples), pieces, len(samples) * x.shape[2] * width * depth * count)
